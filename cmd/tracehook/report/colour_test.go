package report

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestColoursStandOutFromTheirBackground(t *testing.T) {
	for name, c := range schemes(t) {
		for _, background := range []string{"page", "surface", "raised", "hover"} {
			for _, text := range []string{"text", "quiet"} {
				if got := contrast(c[text], c[background]); got < 4.5 {
					t.Errorf("%s: %s on %s has a contrast of %.1f, want 4.5", name, text, background, got)
				}
			}
		}
		for _, text := range []string{"bad", "accent"} {
			if got := contrast(c[text], c["surface"]); got < 4.5 {
				t.Errorf("%s: %s has a contrast of %.1f, want 4.5", name, text, got)
			}
		}
		for _, text := range []string{"ink-text", "ink-quiet", "ink-bad"} {
			if got := contrast(c[text], c["ink"]); got < 4.5 {
				t.Errorf("%s: %s has a contrast of %.1f, want 4.5", name, text, got)
			}
		}
		for i := range palette {
			if got := contrast(c[fmt.Sprintf("c%d", i)], c["surface"]); got < 3 {
				t.Errorf("%s: service colour %d has a contrast of %.1f, want 3", name, i, got)
			}
		}
	}
}

// Whoever cannot tell some hues apart must still see two services as two: no
// pair of colours comes closer than 12 in CIELAB, and of the first four, which
// the demo uses, none closer than 20.
func TestServiceColoursStayApartWithColourBlindness(t *testing.T) {
	// What is left of linear RGB with a cone type missing: the simulation of
	// Machado, Oliveira and Fernandes (2009) at full severity.
	visions := map[string][3][3]float64{
		"normal vision": {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}},
		"protanopia":    {{0.152286, 1.052583, -0.204868}, {0.114503, 0.786281, 0.099216}, {-0.003882, -0.048116, 1.051998}},
		"deuteranopia":  {{0.367322, 0.860646, -0.227968}, {0.280085, 0.672501, 0.047413}, {-0.011820, 0.042940, 0.968881}},
		"tritanopia":    {{1.255528, -0.076749, -0.178779}, {-0.078411, 0.930809, 0.147602}, {0.004733, 0.691367, 0.303900}},
	}
	for scheme, c := range schemes(t) {
		for vision, matrix := range visions {
			for i := range palette {
				for j := range i {
					least := 12.0
					if i < 4 {
						least = 20
					}
					a, b := lab(matrix, c[fmt.Sprintf("c%d", i)]), lab(matrix, c[fmt.Sprintf("c%d", j)])
					if d := math.Sqrt(square(a[0]-b[0]) + square(a[1]-b[1]) + square(a[2]-b[2])); d < least {
						t.Errorf("%s, %s: service colours %d and %d are %.1f apart, want %.0f", scheme, vision, i, j, d, least)
					}
				}
			}
		}
	}
}

// schemes reads the colours of both schemes from the style sheet, as linear RGB.
func schemes(t *testing.T) map[string]map[string][3]float64 {
	t.Helper()
	light, dark, found := strings.Cut(pageStyle, "@media screen and (prefers-color-scheme: dark)")
	if !found {
		t.Fatal("the style sheet has no dark scheme")
	}
	dark, _, _ = strings.Cut(dark, "\n}\n")
	out := map[string]map[string][3]float64{"light": {}, "dark": {}}
	for name, text := range map[string]string{"light": light, "dark": light + dark} {
		for _, m := range regexp.MustCompile(`--([a-z0-9-]+): #([0-9a-f]{6});`).FindAllStringSubmatch(text, -1) {
			var rgb [3]float64
			for i := range rgb {
				v, err := strconv.ParseUint(m[2][2*i:2*i+2], 16, 8)
				if err != nil {
					t.Fatal(err)
				}
				rgb[i] = linear(float64(v) / 255)
			}
			out[name][m[1]] = rgb // the later, dark value wins
		}
	}
	return out
}

func linear(v float64) float64 {
	if v <= 0.04045 {
		return v / 12.92
	}
	return math.Pow((v+0.055)/1.055, 2.4)
}

// contrast is WCAG 2's ratio of two colours, from 1 to 21.
func contrast(a, b [3]float64) float64 {
	luminance := func(c [3]float64) float64 { return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2] }
	light, dark := max(luminance(a), luminance(b)), min(luminance(a), luminance(b))
	return (light + 0.05) / (dark + 0.05)
}

// lab is a colour in CIELAB (D65) as somebody with the given vision sees it.
func lab(vision [3][3]float64, c [3]float64) [3]float64 {
	var seen [3]float64
	for i, row := range vision {
		seen[i] = min(1, max(0, row[0]*c[0]+row[1]*c[1]+row[2]*c[2]))
	}
	f := func(v float64) float64 {
		if v > 0.008856 {
			return math.Cbrt(v)
		}
		return 7.787*v + 16.0/116
	}
	x := f((0.4124*seen[0] + 0.3576*seen[1] + 0.1805*seen[2]) / 0.95047)
	y := f(0.2126*seen[0] + 0.7152*seen[1] + 0.0722*seen[2])
	z := f((0.0193*seen[0] + 0.1192*seen[1] + 0.9505*seen[2]) / 1.08883)
	return [3]float64{116*y - 16, 500 * (x - y), 200 * (y - z)}
}

func square(v float64) float64 { return v * v }
