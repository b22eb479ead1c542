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
// # Who keeps it
//
// An [Authority] keeps a CA and a leaf in two Secrets, one with the CA's key and one that is served; renews both at two
// thirds of their life; and writes the CA to the live bundles. Of many, one works: who holds a Lease. A
// [SecretSource] serves what is in the second Secret.
//
// A leaf that the present CA signs is trusted already, so its renewal is one step. A replacement of the CA goes through phases, which
// are stored, so that whoever comes after a crash goes on:
//
//	phase        who signs the leaf in service   bundles          what ends the phase
//	stable       old                             old              two thirds of the CA's life, a request, or a leaf in
//	                                                              service whose CA's key is not held
//	  issue_ca     makes the next CA; old and next sign each other's keys
//	  issue_leaf   makes the next leaf, served under the proof's name only
//	issued       old                             old → old+next   publish, until every bundle holds both
//	published    old                             old+next         prove: every API server has loaded that, and trusts the next leaf
//	proven       old                             old+next         (a bundle that loses its next CA now leads back to issued); where the
//	                                                              old key does not vouch for the next CA a minute, which is what
//	                                                              requests are given that began before the proof
//	  switch       the next CA is the CA, and the old key is gone
//	switched     old → next                      old+next         send, then check: every endpoint serves the next leaf
//	soaking      next                            old+next         100 s: connections that are kept may still be old
//	dropped      next                            old+next → next  publish, then prove: nobody trusts the old CA any more
//	stable       next                            next
//
// Where nothing works yet there is nothing to replace: the first CA begins as dropped, so that it is published and proven too.
//
// [Next] is the whole plan. It is pure: a [State] and the time give an [Action] and the reason for it. What a phase wants of bundles and
// Secrets is put right before anything else, so a bundle that somebody wipes or a Secret that somebody
// spoils, at whatever moment, needs no path of its own. A phase is stored before anything is done in its name, by a write that fails
// if anybody wrote in between, so that a leader that woke up late changes nothing.
//
// At no time is a leaf in service that a bundle which an API server may still hold does not trust: not even without
// the cross-signed certificates, which are there for what others do meanwhile.
//
// A rotation that somebody asks for is told by a random ID ([RotationRequest]), as two operators' clocks differ. A request that comes while
// another waits takes that one in.
//
// # What a proof makes
//
// A [Barrier] makes an object for a moment and removes it, also when its context ends. What a process that was killed has left is
// found by a label, whatever its age ([FindLeftProofs], [RemoveLeftProofs]). A maker that lives renews a Lease ([Holder]). Whoever looks
// waits and sees whether anything moves, and compares no clock.
//
// # In a manager of controller-runtime
//
// A [SecretSource], a [FileSource], a [Readiness] and an [Authority] are added to it, by Add. All of them run on every replica, whether
// it leads or not, and from before the caches are filled until the webhook server has ended:
//
//	FileSource,
//	SecretSource  every replica serves, also what its own caches need (a conversion webhook)
//	Readiness     every replica is asked whether it is ready
//	Authority     one of them works, by a Lease of its own; without it there may be no certificate at all
//
// So that a manager starts them that early they have the methods of its webhook.Server, which do nothing. Whoever has no
// manager calls Start.
//
// # What is pure
//
// Deciding and judging: Next, Verify, Predict, MergeBundle, Issue and the like. Time and randomness are passed in, nothing is
// written or dialled. What talks to a cluster or a server takes clients and a context.
package certs
