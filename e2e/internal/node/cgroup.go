//go:build linux

package node

// Cgroups. In: the run's name. Out: a cgroup of that name in every hierarchy, for kubelets, and its end. Errors: of
// the file system.

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupMounts are the roots of the hierarchies: one with version 2, one a controller with version 1.
func cgroupMounts() ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo") // proc_pid_mountinfo(5)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var mounts []string
	for line := range strings.Lines(string(info)) {
		before, after, _ := strings.Cut(line, " - ")
		where := strings.Fields(before)
		if len(where) > 4 && strings.HasPrefix(after, "cgroup") && !slices.Contains(mounts, where[4]) {
			mounts = append(mounts, where[4])
		}
	}
	return mounts, nil
}

// makeCgroups makes parent/child in every hierarchy.
func makeCgroups(parent, child string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		dir := mount
		for _, name := range []string{parent, child} {
			// Version 2: what the parent does not hand down, the child does not have.
			if controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil && dir != mount {
				for controller := range bytes.FieldsSeq(controllers) {
					if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), append([]byte("+"), controller...), 0); err != nil {
						return fmt.Errorf("hand down controllers of %s: %w", dir, err)
					}
				}
			}
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			// Version 1: a new cpuset is empty, and takes no process.
			for _, set := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), set))
				if err != nil || len(bytes.TrimSpace(value)) == 0 {
					continue // not this hierarchy, or version 2
				}
				if err := os.WriteFile(filepath.Join(dir, set), value, 0); err != nil {
					return fmt.Errorf("fill cgroup %s: %w", dir, err)
				}
			}
		}
	}
	return nil
}

// removeCgroups removes the cgroups below name in every hierarchy, once the kernel has emptied them: that is a moment
// after the last process has gone.
func removeCgroups(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	var left []error
	for range 300 {
		left = nil
		for _, mount := range mounts {
			if err := removeTree(filepath.Join(mount, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				left = append(left, err)
			}
		}
		if left == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroups: %w", errors.Join(left...))
}

// removeTree removes directories from the bottom. The files in a cgroup go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}
