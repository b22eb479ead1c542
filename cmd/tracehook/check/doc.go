// Package check says whether tracehook can be installed in a cluster, and whether what is installed works.
//
// A check is one declaration in before.go or after.go: code, title, remedy, and what it does. It reads what it needs through a
// Cluster, which asks for each thing once a round, and a pure function judges it. What may not be read makes a check `skip`.
//
// In: clients of a cluster. Out: a Report, one line a check. Errors: the API server does not answer.
package check
