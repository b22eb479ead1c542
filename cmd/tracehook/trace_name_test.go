package main

import (
	"strings"
	"testing"
)

func TestSpanNamesHoldTheVerbAndNothingElseOfTheArguments(t *testing.T) {
	for _, c := range []struct{ command, want string }{
		{"kubectl create -f pod.yaml", "kubectl create"},
		{"/usr/local/bin/kubectl.exe get pods", "kubectl get"},
		{"kubectl", "kubectl"},
		{"kubectl -n create get pods", "kubectl get"},
		{"kubectl -ncreate get pods", "kubectl get"},
		{"kubectl --namespace=create get pods", "kubectl get"},
		{"kubectl --token create get pods", "kubectl get"},
		{"kubectl --insecure-skip-tls-verify get logs", "kubectl get"},
		{"helm --kube-context prod --debug install web ./chart", "helm install"},
		// Unknown words are recorded nowhere: they may be anything.
		{"kubectl hunter2", "kubectl"},
		{"kubectl hunter2 get", "kubectl"},
		{"kubectl --password-of-a-plugin get logs", "kubectl"},
		{"kubectl -x get logs", "kubectl"},
		{"kubectl -- get", "kubectl"},
		{"kubectl -n", "kubectl"},
		{"sh -c create", "sh"},
	} {
		if got := spanName(strings.Fields(c.command)); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.command, got, c.want)
		}
	}
}

func TestAFlagThatChoosesAClusterIsFound(t *testing.T) {
	for _, c := range []struct{ command, want string }{
		{"kubectl get pods", ""},
		{"kubectl get pods --context prod", "--context"},
		{"kubectl get pods --server=https://example.com", "--server"},
		{"helm list --kube-context prod", "--kube-context"},
		{"kubectl exec web -- mysql --user root", ""},
		{"kubectl get pods --contextual", ""},
	} {
		if got := ownClusterFlag(strings.Fields(c.command)); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.command, got, c.want)
		}
	}
}
