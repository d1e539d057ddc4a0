package servertest

import (
	"errors"
	"testing"
)

// Must returns the value, and ends the test where there is an error instead: Must(os.ReadFile(path))(t).
func Must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		OK(t, err)
		return value
	}
}

// OK ends the test where one of the errors is one.
func OK(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
