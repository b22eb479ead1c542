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

func TestWhatWouldFailWithTheTemporaryKubeconfigRunsPastTheProxy(t *testing.T) {
	for _, c := range []struct{ command, env, want string }{
		{command: "kubectl get pods"},
		// Names in the kubeconfig are in the temporary one, too.
		{command: "kubectl get pods --context prod"},
		{command: "kubectl get pods --cluster=prod --user=alice"},
		{command: "helm list --kube-context prod"},
		{command: "kubectl get pods --server=https://example.com", want: "with --server, kubectl"},
		{command: "kubectl get pods -s example.com", want: "with -s, kubectl"},
		{command: "kubectl get pods -s=example.com", want: "with -s, kubectl"},
		{command: "flux -s https://example.com", want: "with -s, flux"},
		{command: "helm template -s templates/web.yaml web ."},
		{command: "kubectl get pods --token hunter2", want: "with --token, kubectl"},
		{command: "kubectl get pods --kubeconfig hunter2", want: "with --kubeconfig, kubectl"},
		{command: "kubectl get pods --insecure-skip-tls-verify", want: "with --insecure-skip-tls-verify, kubectl"},
		{command: "kubectl get pods --insecure-skip-tls-verify=false"},
		{command: "kubectl get pods --certificate-authority=ca.crt", want: "with --certificate-authority, kubectl"},
		{command: "helm list --kube-token hunter2", want: "with --kube-token, helm"},
		{command: "helm list", env: "HELM_KUBEAPISERVER=https://hunter2", want: "with HELM_KUBEAPISERVER, helm"},
		{command: "helm list", env: "HELM_KUBECONTEXT=prod"},
		{command: "kubectl get pods", env: "HELM_KUBETOKEN=hunter2"},
		{command: "kubectl exec web -- mysql --server=x --token y"},
		{command: "kubectl get pods --servers=x"},
		// What changes or shows the kubeconfig.
		{command: "kubectl config use-context prod", want: "kubectl config works on your kubeconfig"},
		{command: "kubectl -n shop config view", want: "kubectl config works on your kubeconfig"},
		{command: "oc login https://example.com", want: "oc login works on your kubeconfig"},
		{command: "oc new-project shop", want: "oc new-project works on your kubeconfig"},
		{command: "helm registry login x"},
		// Of a chart's repository.
		{command: "helm upgrade web chart --repo https://r --username u --password hunter2 --insecure-skip-tls-verify"},
		{command: "argocd login x"},
	} {
		got := pastProxy(strings.Fields(c.command), []string{"HOME=/", c.env})
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") || strings.Contains(got, "hunter2") {
			t.Errorf("%s %s\n got %q\nwant %q", c.env, c.command, got, c.want)
		}
	}
}
