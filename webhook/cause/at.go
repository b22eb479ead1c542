package cause

import (
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// causedAtLayout is RFC 3339 with milliseconds, in UTC.
const causedAtLayout = "2006-01-02T15:04:05.000Z"

// At returns when the cause that Of returns was stored, to the millisecond and by the webhook's clock.
// It is zero where obj has no cause, or none with a time: the time stands beside the traceparent
// (CausedAtKey) with a checksum of it, so that another traceparent's time is not taken for its own.
//
// An object that continues its owner's cause has its owner's time: that of the first in the chain.
func At(obj metav1.Object, keys ...string) time.Time {
	if len(keys) == 0 {
		keys = []string{DefaultKey, KEP5915Key}
	}
	m, _ := read(obj)
	for _, key := range keys {
		if traceparent := m.annotations[key]; Parse(traceparent, "").IsValid() {
			return causedAt(m.annotations[CausedAtKey(key)], traceparent)
		}
	}
	return time.Time{}
}

// causedAt reads the time, and the first of the two checksums behind it; the second is for the webhook.
func causedAt(text, traceparent string) time.Time {
	const length = len(causedAtLayout) + 1 + 16
	if len(text) != length {
		return time.Time{}
	}
	at, err := time.Parse(causedAtLayout, text[:len(causedAtLayout)])
	sums, err2 := hex.DecodeString(text[len(causedAtLayout)+1:])
	if err != nil || err2 != nil {
		return time.Time{}
	}
	hash := fnv.New32a()
	_, _ = hash.Write(append([]byte(traceparent), 0xff)) // 0xff ends a part: no part has it
	if binary.BigEndian.Uint32(sums) != hash.Sum32() {
		return time.Time{}
	}
	return at
}
