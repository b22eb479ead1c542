package main

import (
	"net/http"
	"reflect"
	"testing"
)

func TestTheHeadersForTheStoreComeFromFlagsAndTheEnvironment(t *testing.T) {
	env := map[string]string{
		storeVariable:        "tempo=https://tempo.example/tempo",
		storeHeadersVariable: "authorization=Basic%20YTpi , X-Scope-OrgID=team,",
	}
	flags := storeFlags{Headers: []string{"X-Plain=100%=all"}}
	client, err := flags.open(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Authorization": {"Basic YTpi"}, "X-Scope-Orgid": {"team"}, "X-Plain": {"100%=all"}}
	if client.BaseURL != "https://tempo.example/tempo" || !reflect.DeepEqual(client.Header, want) {
		t.Errorf("%s with %v, want %v", client.BaseURL, client.Header, want)
	}
	flags.Store = "jaeger=http://localhost:16686" // a flag wins
	if client, err = flags.open(func(name string) string { return env[name] }); err != nil || client.BaseURL != "http://localhost:16686" {
		t.Errorf("%v, %v", client, err)
	}
	if client, err := (&storeFlags{}).open(func(string) string { return "" }); client != nil || err != nil {
		t.Errorf("without a store: %v, %v", client, err)
	}
}
