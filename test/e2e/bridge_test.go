//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// bridgeVariable tells a copy of this test that it stands in for a command of the
// runbook, and where the test listens that answers for it.
const bridgeVariable = "KE2E_BRIDGE"

// call is one use of a stand-in.
type call struct {
	Tool string
	Args []string
}

// answer is what it prints and ends with.
type answer struct {
	Stdout, Stderr string
	Code           int
}

// standIn passes its command line to the test and ends as the test says.
func standIn(tool string, args []string) int {
	in, _ := json.Marshal(call{tool, args}) // plain fields
	resp, err := http.Post(os.Getenv(bridgeVariable), "application/json", bytes.NewReader(in))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	defer resp.Body.Close()
	var out answer
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	_, _ = io.WriteString(os.Stdout, out.Stdout)
	_, _ = io.WriteString(os.Stderr, out.Stderr)
	return out.Code
}

// bridge puts stand-ins into a directory for PATH and returns what their
// environment must hold.
func bridge(t *testing.T, dir string, answerTo func(call) answer, tools ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c call
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(answerTo(c)) // who asked sees that it broke
	}))
	t.Cleanup(s.Close)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools {
		if err := os.Symlink(self, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	return bridgeVariable + "=" + s.URL
}
