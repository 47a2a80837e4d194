#!/bin/sh
# html.sh DIRECTORY: makes the manual pages as HTML with links between them, and index.html, in DIRECTORY.
# It must not know what a page says.
set -eu
cd "$(dirname "$0")/.."
target=$1
mkdir -p "$target"
cp docs/style.css "$target/"

# The reference dlock-run(1) leads to dlock-run.1.html.
link='s,<b>(dlock[-.a-z]*)</b>\(([1-8])\),<a href="\1.\2.html"><b>\1</b>(\2)</a>,g'
{
    cat <<'END'
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1.0"/>
<link rel="stylesheet" href="style.css"/>
<title>Manual pages of dlock</title>
</head>
<body>
<h1>Manual pages of dlock</h1>
<table>
END
    for page in man/dlock.1 man/dlock-*.1 man/*.[2-8]; do
        name=${page#man/}
        mandoc -T html -O style=style.css "$page" |
            sed -E -e "$link" -e 's,^<body>,<body>\n<p class="top"><a href="index.html">Manual pages of dlock</a></p>,' \
                >"$target/$name.html"
        content=$(sed -n '/^\.SH NAME/{n;s/.* \\- //;p;q;}' "$page" | sed 's/\\-/-/g')
        echo "<tr><td><a href=\"$name.html\">${name%.*}(${name##*.})</a></td><td>$content</td></tr>"
    done
    printf '%s\n' '</table>' '</body>' '</html>'
} >"$target/index.html"
