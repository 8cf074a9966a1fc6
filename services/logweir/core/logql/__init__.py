"""LogQL: text in, a tree out, with the place and a hint in every error. Pure.

    text --parser.parse--> tree.Query --query/plan.py--> what to read

Understood today: a stream selector and chained line filters. Grammar, as far as it goes:

    query    = selector { filter }
    selector = "{" [ matcher { "," matcher } [","] ] "}"
    matcher  = name ("=" | "!=" | "=~" | "!~") string
    filter   = ("|=" | "!=" | "|~" | "!~") string { "or" string }
    name     = word | string            string = "..." with Go's escapes | `...` as it is

Names may hold `.`, `-` and `/`, as labels of this system may. `{}` selects everything. Regular
expressions are RE2's; a matcher's must match the whole value, a filter's any part of the line.
"""
