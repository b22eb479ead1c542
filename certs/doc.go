// Package certs makes the certificates that API servers verify when they call a
// webhook, an aggregated API or a conversion webhook.
//
// # Whose name
//
// An API server that calls a Service does not verify the address it dials but
// the name <service>.<namespace>.svc, and only against the certificate's subject
// alternative names. [ServerName] is that name, [ServiceNames] all names under which
// a Service is called, and [ParseService] reads the NAMESPACE/NAME that people type.
//
// # Whose signature
//
// The API server trusts the bundle in the field caBundle of its configuration and
// nothing else. [NewCA] makes a certificate authority for that field, and [Issue] a
// serving certificate signed by it:
//
//	ca, err := certs.NewCA(certs.CAOptions{Now: now})
//	names, err := certs.ServiceNames("tracehook-system", "tracehook", "")
//	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: names})
//	// leaf.CertificatePEM(), leaf.KeyPEM() → the server; ca.CertificatePEM() → caBundle
//
// # What is wrong with it
//
// [Verify] says everything that is wrong with a chain, for the name and the trust that
// an API server has, where the API server stops at the first fault; [Predict] says from
// that whether the call works and which of the API server's counters move. [Audit] dials
// what the API servers of a cluster dial, and judges it so.
//
// Everything but Audit and ReadCounters is pure: time and randomness are passed in,
// nothing is written or dialled.
package certs
