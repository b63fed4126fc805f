package main

import (
	"testing"
)

func TestPolicies(t *testing.T) {
	dir := onCluster(t)
	get := func(path, want string) {
		t.Helper()
		if got := must(t, "policy", "get", path); got != path+": "+want+"\n" {
			t.Errorf("%q, want %q", got, want)
		}
	}
	must(t, "mkdir", dir+"/old")
	get(dir, "replicas=3, 2 of 3 before a write counts; the cluster's default")
	must(t, "policy", "set", dir, "ec=2+1")
	must(t, "mkdir", dir+"/new")
	get(dir, "ec=2+1, 3 of 3 before a write counts; its own")
	get(dir+"/new", "ec=2+1, 3 of 3 before a write counts; its own")
	get(dir+"/old", "replicas=3, 2 of 3 before a write counts; the cluster's default")
	if p := fromJSON[jsonPolicy](t, must(t, "policy", "get", "--json", dir+"/new")); !p.Own || p.jsonLayout != (jsonLayout{"ec=2+1", 2, 1, 3}) {
		t.Errorf("%+v", p)
	}
	must(t, "policy", "set", dir, "replicas=2,min-copies=1")
	get(dir, "replicas=2,min-copies=1, 1 of 2 before a write counts; its own")
	must(t, "policy", "set", dir, "default")
	if p := fromJSON[jsonPolicy](t, must(t, "policy", "get", "--json", dir)); p.Own || p.Policy != "replicas=3" || p.MinCopies != 2 {
		t.Errorf("%+v", p)
	}
	fails(t, exitFailed, []string{dir + "/no such thing: no such file"}, "policy", "get", dir+"/no such thing")
	fails(t, exitFailed, []string{dir + "/no such thing: no such file"}, "policy", "set", dir+"/no such thing", "replicas=2")
	fails(t, exitFailed, []string{dir + ": ec=4+2 needs 6 chunk servers that are healthy and have room, of which there are 3\n"}, "policy", "set", dir, "ec=4+2")
}
