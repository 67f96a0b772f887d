package main

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// explainUsage makes every command below root say in one line what was typed wrong
// and what to do, in place of the libraries' own words.
func explainUsage(root *cobra.Command) {
	root.SetFlagErrorFunc(flagError)
	var each func(*cobra.Command)
	each = func(c *cobra.Command) {
		switch {
		case c.HasSubCommands() && !c.Runnable():
			c.FParseErrWhitelist.UnknownFlags = true // the word before the flag is what is wrong
			c.Args = noSuchCommand
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		case isNoArgs(c.Args):
			c.Args = takesNone
		}
		for _, sub := range c.Commands() {
			each(sub)
		}
	}
	each(root)
}

// numberOf is a number of things, in words.
func numberOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// isNoArgs reports whether a command has cobra's own check for no arguments.
func isNoArgs(check cobra.PositionalArgs) bool {
	return check != nil && reflect.ValueOf(check).Pointer() == reflect.ValueOf(cobra.NoArgs).Pointer()
}

// noSuchCommand refuses what is no command of a group.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			names = append(names, sub.Name())
		}
	}
	what := "command"
	if c.Name() == "get" {
		what = "resource"
	}
	return fmt.Errorf("unknown %s %q: use %s", what, args[0], orList(names))
}

// takesNone refuses arguments.
func takesNone(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if c.HasSubCommands() {
		return noSuchCommand(c, args)
	}
	return fmt.Errorf("%q is not expected: %s takes no arguments, only flags; see %[2]s --help", args[0], c.CommandPath())
}

// between asks for some number of arguments; missing and example say what to give.
func between(least, most int, missing, example string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s: nodeproxy %s", missing, example)
		case most >= 0 && len(args) > most:
			return fmt.Errorf("%q is one argument too many: nodeproxy %s", args[most], example)
		}
		return nil
	}
}

// orList joins words as "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// flagError says what to do about a flag.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := "--" + unknown.GetSpecifiedName()
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			name = "-" + unknown.GetSpecifiedName()
		}
		return fmt.Errorf("unknown flag %s: see %s --help", name, c.CommandPath())
	case errors.As(err, &missing):
		return fmt.Errorf("--%s needs a value: use %s", missing.GetFlag().Name, wanted(missing.GetFlag()))
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %q: use %s", invalid.GetFlag().Name, invalid.GetValue(), wanted(invalid.GetFlag()))
	}
	return err
}

// wanted says what a flag takes.
func wanted(f *pflag.Flag) string {
	switch kind := f.Value.Type(); kind {
	case "duration":
		return "a duration such as 30s or 1m"
	case "bool":
		return "true or false"
	case "uint16":
		return "a number from 0 to 65535"
	case "int", "int32", "int64", "uint32":
		return "a whole number"
	case "float32", "float64":
		return "a number"
	case "intSlice":
		return "whole numbers, such as 1,1000"
	default:
		return "a " + kind
	}
}
