package main

// What commands print for machines. In: what a command found. Out: a document that says what it is. Errors: none.

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/cmd/tracehook/explain"
)

// Kinds of documents. docs/schemas has a schema of each.
const (
	kindAudit     = "CertificateAudit"
	kindAuditList = "CertificateAuditList"
	kindIssued    = "IssuedCertificate"
	kindMigration = "CertificateMigration"
	kindRotation  = "CertificateRotation"
)

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: kind}
}

// auditDocument is the audit of one cluster.
type auditDocument struct {
	metav1.TypeMeta `json:",inline"`
	// Context is the kubeconfig's, if one was named.
	Context string `json:"context,omitempty"`
	// Error is why the cluster could not be looked at.
	Error string `json:"error,omitempty"`
	certs.AuditReport
}

// auditList is that of several.
type auditList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []auditDocument `json:"items"`
}

// statusDocument is one line of a rotation.
type statusDocument struct {
	metav1.TypeMeta `json:",inline"`
	certs.Status
}

func newStatusDocument(s certs.Status) statusDocument {
	return statusDocument{typeMeta(kindRotation), s}
}
