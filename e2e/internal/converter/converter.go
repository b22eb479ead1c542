// Package converter is a conversion webhook of somebody else's.
package converter

import (
	"encoding/json"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Convert answers a ConversionReview and changes nothing but the version.
func Convert(w http.ResponseWriter, r *http.Request) {
	var review struct {
		metav1.TypeMeta
		Request struct {
			UID               string
			DesiredAPIVersion string
			Objects           []map[string]any
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, "no ConversionReview: "+err.Error(), http.StatusBadRequest)
		return
	}
	for _, object := range review.Request.Objects {
		object["apiVersion"] = review.Request.DesiredAPIVersion
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind, "response": map[string]any{
		"uid": review.Request.UID, "result": map[string]any{"status": metav1.StatusSuccess}, "convertedObjects": review.Request.Objects,
	}}) // who hung up is told nothing
}
