package config

import (
	"slices"
	"strconv"
	"strings"

	"github.com/agext/levenshtein"
)

// didYouMean returns ` Did you mean "x"?` for the known name that is nearest to given, or "" if none is near.
func didYouMean(given string, known []string) string {
	best, bestDistance := "", 3 // as HCL: three edits or more are another word
	for _, k := range known {
		if d := levenshtein.Distance(given, k, nil); d < bestDistance && d < len(k) {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return " Did you mean " + strconv.Quote(best) + "?"
}

// quoteList writes names as `"a", "b" and "c"`.
func quoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = strconv.Quote(n)
	}
	if len(quoted) < 2 {
		return strings.Join(quoted, "")
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " and " + quoted[last]
}

// sortedCopy returns names sorted, each once.
func sortedCopy(names []string) []string {
	s := slices.Clone(names)
	slices.Sort(s)
	return slices.Compact(s)
}
