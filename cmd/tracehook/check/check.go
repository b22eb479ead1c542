package check

// What a check is, and one round of all of them. In: a Cluster. Out: a Report. Errors: none; what goes wrong is a result.

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the report calls itself.
const (
	APIVersion = "tracehook.dev/v1alpha1"
	KindReport = "CheckReport"
)

// Status is how a check ended.
type Status string

// A Status is one of these. Only StatusFail makes the report fail.
const (
	StatusOK   Status = "ok"
	StatusWarn Status = "warn"
	StatusFail Status = "fail"
	StatusSkip Status = "skip" // it could not be looked at, or there is nothing to look at
)

// Report is what all checks found, in the order of their declarations.
type Report struct {
	metav1.TypeMeta `json:",inline"`
	// Time is when the round began.
	Time metav1.Time `json:"time"`
	// Installed says whether tracehook was found.
	Installed bool     `json:"installed"`
	Results   []Result `json:"results"`
}

// Result is one line.
type Result struct {
	// Code names the check.
	Code   string `json:"code"`
	Status Status `json:"status"`
	// Message says what was seen. Parts of it come from the cluster.
	Message string `json:"message"`
	// Remedy says what to do. It is empty where nothing is to be done.
	Remedy string `json:"remedy,omitempty"`
}

// Failed says whether a check failed.
func (r Report) Failed() bool {
	return slices.ContainsFunc(r.Results, func(r Result) bool { return r.Status == StatusFail })
}

// phase is when a check is made.
type phase int

const (
	always phase = iota
	before       // while tracehook is not installed
	after        // once it is
)

// Check is one declaration.
type Check struct {
	Code  string
	Title string // what it asks, for the documentation
	// Remedy is what to do where it is not ok and the verdict knows nothing better. NAMESPACE in it stands for tracehook's.
	Remedy string

	phase phase
	look  func(context.Context, *Cluster) verdict
}

// verdict is what a check came to.
type verdict struct {
	status  Status
	message string
	remedy  string // "": the check's
}

func ok(format string, args ...any) verdict {
	return verdict{status: StatusOK, message: fmt.Sprintf(format, args...)}
}

func warn(format string, args ...any) verdict {
	return verdict{status: StatusWarn, message: fmt.Sprintf(format, args...)}
}

func fail(format string, args ...any) verdict {
	return verdict{status: StatusFail, message: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) verdict {
	return verdict{status: StatusSkip, message: fmt.Sprintf(format, args...)}
}

// do returns the verdict with a remedy of its own.
func (v verdict) do(remedy string) verdict {
	v.remedy = remedy
	return v
}

// unread is the verdict about something that could not be read: "may not list pods" where a right is missing.
func unread(what string, err error) verdict {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return skip("may not %s", what)
	case apierrors.IsNotFound(err):
		return skip("%s: the API server does not know it", what)
	}
	return fail("%s: %v", what, err).do("Try again. If it stays so, look at the API server and at the way to it.")
}

// All are the declarations, in the order of the report.
func All() []Check { return slices.Concat(beforeChecks(), afterChecks()) }

// Run makes one round. Checks run side by side. now is when the round begins. A check whose context ends says so.
func Run(ctx context.Context, c *Cluster, now time.Time) Report {
	installed := c.installed(ctx)
	r := Report{
		TypeMeta: metav1.TypeMeta{APIVersion: APIVersion, Kind: KindReport},
		Time:     metav1.NewTime(now.UTC().Truncate(time.Second)), Installed: installed.yes,
	}
	var checks []Check
	for _, check := range All() {
		if check.phase == always || (check.phase == after) == installed.yes {
			checks = append(checks, check)
		}
	}
	r.Results = make([]Result, len(checks))
	namespace, _, _ := c.place(ctx)
	var group errgroup.Group
	for i, check := range checks {
		group.Go(func() error {
			v := check.look(ctx, c)
			if ctx.Err() != nil && v.status == StatusFail {
				v = fail("the time was over: %s", v.message)
			}
			r.Results[i] = Result{Code: check.Code, Status: v.status, Message: v.message}
			if v.status == StatusWarn || v.status == StatusFail {
				if v.remedy == "" {
					v.remedy = check.Remedy
				}
				r.Results[i].Remedy = strings.ReplaceAll(v.remedy, "NAMESPACE", namespace)
			}
			return nil
		})
	}
	_ = group.Wait() // what fails is a result
	return r
}
