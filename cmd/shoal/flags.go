package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// textValue is a flag that takes an address, a path or another text. Where its value is missing, as that of a shell variable that
// is not set, the next flag would be taken for it.
type textValue struct{ pflag.Value }

var errNoValue = errors.New("a flag in the place of a value")

// Set implements pflag.Value.
func (v textValue) Set(s string) error {
	if strings.HasPrefix(s, "--") {
		return errNoValue
	}
	return v.Value.Set(s)
}

// guardTexts makes all flags of a command, and of those below it, that take texts refuse what can only be another flag.
func guardTexts(cmd *cobra.Command) {
	guard := func(f *pflag.Flag) {
		switch f.Value.Type() {
		case "string":
			f.Value = textValue{f.Value}
		case "stringSlice":
			f.Value, f.DefValue = textValue{f.Value}, "" // as the help knows no default of a type that is ours
		}
	}
	cmd.Flags().VisitAll(guard)
	cmd.PersistentFlags().VisitAll(guard)
	for _, sub := range cmd.Commands() {
		guardTexts(sub)
	}
}

// flagError says what a flag takes, where the value given is nothing of that kind.
func flagError(err error) error {
	if missing := (*pflag.ValueRequiredError)(nil); errors.As(err, &missing) {
		return noValue(missing.GetFlag())
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	want := ""
	switch f := invalid.GetFlag(); f.Value.Type() {
	case "int", "int64":
		want = "a whole number"
	case "uint64":
		want = "a whole number from 0"
	case "duration":
		want = "a duration such as 2s or 1m"
	case "bool":
		want = "true or false"
	case "rate":
		want = invalid.Unwrap().Error() // it says what it wants
	default:
		if errors.Is(invalid.Unwrap(), errNoValue) {
			return noValue(f)
		}
		return err
	}
	return fmt.Errorf("--%s %s: invalid argument, want %s", invalid.GetFlag().Name, quoted(invalid.GetValue()), want)
}

func noValue(f *pflag.Flag) error { return fmt.Errorf("--%s needs a value", f.Name) }
