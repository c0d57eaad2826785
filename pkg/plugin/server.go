package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"
)

const (
	// MaxStreams bounds the calls in flight on one connection. It keeps memory
	// flat when an API server sends thousands of Decrypts at a cold start: the
	// rest wait in the client, and a Status behind them. Half of this may wait for
	// the KMS (package custody); the other half passes.
	MaxStreams = 384
	// maxMessage is twice the largest legal Decrypt (about 34 KiB).
	maxMessage = 64 << 10
	// streamWorkers keeps goroutine stacks warm between calls; what one read of the
	// connection brings are some dozens.
	streamWorkers = 32
)

// Observer sees every finished call.
type Observer interface {
	RPC(method string, code codes.Code, d time.Duration)
}

// ServerConfig is what a server needs besides its service.
type ServerConfig struct {
	Credentials credentials.TransportCredentials // nil: any peer
	Observer    Observer
	Log         *slog.Logger
}

// NewServer builds the gRPC server; the caller gives it a listener and stops it.
// There is no reflection and no other service on it.
func NewServer(s *Service, c ServerConfig) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(MaxStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ConnectionTimeout(5 * time.Second),
		grpc.UnaryInterceptor(intercept(c.Observer, c.Log)),
	}
	if c.Credentials != nil {
		opts = append(opts, grpc.Creds(c.Credentials))
	}
	srv := grpc.NewServer(opts...)
	kmsapi.RegisterKeyManagementServiceServer(srv, s)
	return srv
}

// intercept measures each call and turns a panic into an error: one bad request
// must not end the process that every Secret of the cluster depends on.
func intercept(o Observer, log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				// The value could hold what the request held: only its type is logged.
				log.Error("panic in a call; this is a defect, please report it", "method", info.FullMethod,
					"type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
				resp, err = nil, status.Error(codes.Internal, "internal error, see the log of kms-plugin")
			}
			o.RPC(info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:], status.Code(err), time.Since(start))
		}()
		return next(ctx, req)
	}
}
