// This file writes durations and numbers the same way everywhere: a value
// comes in, text goes out.

package report

import (
	"math"
	"strconv"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

// formatDuration gives a duration three digits and a unit, "1.23 ms". Whole
// values above that keep their digits.
func formatDuration(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs == 0:
		return "0 µs"
	case abs < time.Microsecond:
		return strconv.FormatInt(int64(d), 10) + " ns"
	case abs < 999500*time.Nanosecond:
		return threeDigits(float64(d)/float64(time.Microsecond)) + " µs"
	case abs < 999500*time.Microsecond:
		return threeDigits(float64(d)/float64(time.Millisecond)) + " ms"
	default:
		return threeDigits(d.Seconds()) + " s"
	}
}

// resolutionKey is in seconds: how exact the times of a span are whose source has no more. tracehook's lifecycle sets it.
const resolutionKey = "tracehook.time.resolution"

// spanDuration is a span's, "< 1 s" where its source has whole seconds and both ends are in one.
func spanDuration(s *tracestore.Span) string {
	var resolution float64
	switch v := s.Attributes[resolutionKey].(type) {
	case float64:
		resolution = v
	case int64:
		resolution = float64(v)
	}
	if resolution <= 60 && s.Duration.Seconds() < resolution { // coarser is no clock's
		return "< " + threeDigits(resolution) + " s"
	}
	return formatDuration(s.Duration)
}

func threeDigits(v float64) string {
	decimals := 0
	switch abs := math.Abs(v); {
	case v == math.Trunc(v): // 250 and not 250.0, 2 and not 2.00
	case abs < 9.995:
		decimals = 2
	case abs < 99.95:
		decimals = 1
	}
	return strconv.FormatFloat(v, 'f', decimals, 64)
}

// formatTick is formatDuration for an axis, where every label has the unit of
// the axis's end and as few decimals as tell the ticks apart.
func formatTick(d, step, total time.Duration) string {
	unit, name := time.Nanosecond, " ns"
	switch {
	case total >= time.Second:
		unit, name = time.Second, " s"
	case total >= time.Millisecond:
		unit, name = time.Millisecond, " ms"
	case total >= time.Microsecond:
		unit, name = time.Microsecond, " µs"
	}
	if d == 0 {
		return "0" + name
	}
	decimals := 0
	for fine := unit; fine > step && decimals < 9; fine /= 10 {
		decimals++
	}
	return strconv.FormatFloat(float64(d)/float64(unit), 'f', decimals, 64) + name
}

// formatNumber writes a counter's value.
func formatNumber(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// formatDelta writes a difference with its sign; 0 has none.
func formatDelta(v float64) string {
	if v > 0 {
		return "+" + formatNumber(v)
	}
	return formatNumber(v)
}
