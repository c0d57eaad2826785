package awskms

import (
	"context"
	"os"

	"github.com/aws/aws-sdk-go-v2/config"
)

// Host is what the AWS SDK uses of this host to find credentials.
type Host struct {
	Files []string // read now and then, also replaced ones
	// Program: the profile names a credential_process, which is started for each
	// renewal.
	Program bool
}

// HostOf looks at the environment and at the shared configuration files. A file
// that cannot be read is no error here: New says it better.
func HostOf(ctx context.Context) Host {
	env, err := config.NewEnvConfig()
	if err != nil {
		return Host{}
	}
	files, credentials := config.DefaultSharedConfigFiles, config.DefaultSharedCredentialsFiles
	if env.SharedConfigFile != "" {
		files = []string{env.SharedConfigFile}
	}
	if env.SharedCredentialsFile != "" {
		credentials = []string{env.SharedCredentialsFile}
	}
	h := Host{}
	for _, list := range [][]string{files, credentials, {env.WebIdentityTokenFilePath, os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")}} {
		for _, path := range list {
			if path != "" {
				h.Files = append(h.Files, path)
			}
		}
	}
	profile := env.SharedConfigProfile
	if profile == "" {
		profile = config.DefaultSharedConfigProfile
	}
	shared, err := config.LoadSharedConfigProfile(ctx, profile, func(o *config.LoadSharedConfigOptions) {
		o.ConfigFiles, o.CredentialsFiles = files, credentials
	})
	if err != nil {
		return h
	}
	h.Program = startsProgram(shared)
	for p := &shared; p != nil; p = p.Source {
		if p.WebIdentityTokenFile != "" {
			h.Files = append(h.Files, p.WebIdentityTokenFile)
		}
	}
	return h
}
