//! A manual page as Markdown, with links between the pages, for readers on the web.
//! It knows the macros that our pages use, and must not know what a page says.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A font, and a piece of a line in it.
type Piece = (Font, String);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Font {
    Roman,
    Bold,
    Italic,
}

/// How the paragraphs of the page are indented at the moment.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Columns of the list around.
    indent: usize,
    is_in_item: bool,
}

#[derive(Default)]
struct Writer {
    text: String,
    place: Place,
    outer: Vec<Place>,
    /// The beginning of the next line.
    prefix: Option<String>,
    /// Whether the next line is the tag of a list's item, and whether the one after it is its text.
    tag: Tag,
}

#[derive(Default, PartialEq)]
enum Tag {
    #[default]
    No,
    Next,
    Written,
}

impl Writer {
    fn indent(&self) -> String {
        let inner = if self.place.is_in_item { 2 } else { 0 };
        " ".repeat(self.place.indent + inner)
    }

    fn blank(&mut self) {
        let trimmed = self.text.trim_end().len();
        self.text.truncate(trimmed);
        self.text.push_str("\n\n");
        self.tag = Tag::No;
    }

    fn line(&mut self, line: &str) {
        match self.tag {
            Tag::Next => {
                let indent = " ".repeat(self.place.indent);
                writeln!(self.text, "{indent}- {line}").unwrap();
                self.tag = Tag::Written;
                return;
            }
            // The tag has a line of its own.
            Tag::Written => {
                self.text.truncate(self.text.trim_end().len());
                self.text.push_str("\\\n");
                self.tag = Tag::No;
            }
            Tag::No => {}
        }
        let indent = self.indent();
        let prefix = self.prefix.take().unwrap_or(indent);
        // A character that would begin a list, a heading or a quotation.
        let is_markup = line.starts_with(['-', '+', '#', '>', '=']);
        let escape = if is_markup { "\\" } else { "" };
        writeln!(self.text, "{prefix}{escape}{line}").unwrap();
    }

    /// Begins an item whose text follows in the same line.
    fn item(&mut self, mark: &str) {
        self.place.is_in_item = true;
        self.prefix = Some(format!("{}{mark} ", " ".repeat(self.place.indent)));
    }
}

/// The page, whose links lead to those of `pages` (`NAME.SECTION`) in the same directory.
pub(super) fn convert(page: &str, pages: &BTreeSet<String>) -> String {
    let mut writer = Writer::default();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let (request, rest) = line.split_once(' ').unwrap_or((line, ""));
        match request {
            // Comments, and definitions of strings.
            "'\\\"" | ".ie" | ".el" | ".na" | ".ad" => {}
            ".TH" => {
                let mut words = words(rest).into_iter();
                let name = words.next().unwrap_or_default().to_lowercase();
                let section = words.next().unwrap_or_default();
                writeln!(writer.text, "# {}({section})", plain(&name)).unwrap();
            }
            ".SH" | ".SS" => {
                let level = if request == ".SH" { "##" } else { "###" };
                writer.place = Place::default();
                writer.blank();
                writeln!(writer.text, "{level} {}\n", plain(&words(rest).join(" "))).unwrap();
            }
            ".PP" => {
                writer.place.is_in_item = false;
                writer.blank();
            }
            "" => writer.blank(),
            ".br" => {
                writer.text.truncate(writer.text.trim_end().len());
                writer.text.push_str("\\\n");
            }
            ".TP" => {
                writer.blank();
                writer.place.is_in_item = true;
                writer.tag = Tag::Next;
            }
            ".IP" => {
                writer.blank();
                match words(rest).first().map(String::as_str) {
                    None => {}
                    Some("\\(bu") => writer.item("-"),
                    Some(number) => writer.item(number),
                }
            }
            ".RS" => {
                writer.outer.push(writer.place);
                if rest.is_empty() && writer.place.is_in_item {
                    writer.place.indent += 2;
                    writer.place.is_in_item = false;
                }
            }
            ".RE" => {
                writer.place = writer.outer.pop().expect("an .RS before");
                writer.blank();
            }
            ".nf" => {
                writer.blank();
                let indent = writer.indent();
                writeln!(writer.text, "{indent}```").unwrap();
                for line in lines.by_ref().take_while(|line| *line != ".fi") {
                    let line = format!("{indent}{}", plain(line));
                    writer.text += line.trim_end();
                    writer.text.push('\n');
                }
                writeln!(writer.text, "{indent}```").unwrap();
                writer.blank();
            }
            ".TS" => {
                writer.blank();
                let table: Vec<&str> = lines.by_ref().take_while(|line| *line != ".TE").collect();
                writer.text += &tabulated(&table, pages);
                writer.blank();
            }
            _ => writer.line(&linked(&shown(&pieces(line)), pages)),
        }
    }
    writer.text.trim_end().to_owned() + "\n"
}

/// The first row is the heading.
fn tabulated(table: &[&str], pages: &BTreeSet<String>) -> String {
    // Options end with a semicolon, and the layout with a full stop.
    let layout = table.iter().position(|line| line.ends_with('.'));
    let (layout, rows) = table.split_at(layout.expect("a layout") + 1);
    let separator = if layout.iter().any(|line| line.contains("tab(|)")) {
        '|'
    } else {
        '\t'
    };
    // Blocks between T{ and T} are cells of several lines.
    let rows = rows.join("\n").replace("\nT}", "T}").replace("T{\n", "T{");
    let mut text = String::new();
    for (number, row) in rows.split('\n').enumerate() {
        let cells: Vec<String> = row
            .split(separator)
            .map(|cell| {
                let cell = cell.strip_prefix("T{").unwrap_or(cell);
                let cell = cell.strip_suffix("T}").unwrap_or(cell);
                linked(&shown(&pieces(cell)), pages).replace('|', "\\|")
            })
            .collect();
        writeln!(text, "| {} |", cells.join(" | ")).unwrap();
        if number == 0 {
            writeln!(text, "|{}", "---|".repeat(cells.len())).unwrap();
        }
    }
    text
}

/// The arguments of a macro.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in text.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().expect("one at least").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A line of text, or a macro of fonts.
fn pieces(line: &str) -> Vec<Piece> {
    let font = |letter: char| match letter {
        'B' => Font::Bold,
        'I' => Font::Italic,
        'R' => Font::Roman,
        other => panic!("{line}: {other} is no font"),
    };
    let Some(call) = line.strip_prefix('.') else {
        return inline(line, Font::Roman);
    };
    let (fonts, rest) = call.split_once(' ').unwrap_or((call, ""));
    let fonts: Vec<Font> = fonts.chars().map(font).collect();
    let words = words(rest);
    match *fonts {
        [font] => inline(&words.join(" "), font),
        [..] => words
            .iter()
            .zip(fonts.iter().cycle())
            .flat_map(|(word, font)| inline(word, *font))
            .collect(),
    }
}

/// Text with changes of the font in it.
fn inline(text: &str, first: Font) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut parts = text.split("\\f");
    pieces.push((first, plain(parts.next().unwrap_or_default())));
    for part in parts {
        let font = match part.chars().next() {
            Some('B') => Font::Bold,
            Some('I') => Font::Italic,
            _ => Font::Roman,
        };
        pieces.push((font, plain(&part[1..])));
    }
    pieces.retain(|(_, text)| !text.is_empty());
    pieces
}

/// The text that roff's escapes stand for.
fn plain(text: &str) -> String {
    let mut shown = text.to_owned();
    for (escape, text) in [
        ("\\-", "-"),
        ("\\&", ""),
        ("\\*(Aq", "'"),
        ("\\(aq", "'"),
        ("\\(dq", "\""),
        ("\\(lq", "“"),
        ("\\(rq", "”"),
        ("\\(mu", "×"),
        ("\\(em", "—"),
        ("\\(ga", "`"),
        ("\\(ha", "^"),
        ("\\(ti", "~"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
    ] {
        shown = shown.replace(escape, text);
    }
    let shown = shown.replace("\\e", "\u{1}");
    assert!(!shown.contains('\\'), "an unknown escape: {text}");
    shown.replace('\u{1}', "\\")
}

/// The pieces in Markdown.
fn shown(pieces: &[Piece]) -> String {
    let mut line = String::new();
    for (at, (font, text)) in pieces.iter().enumerate() {
        let before = line.chars().next_back();
        let after = pieces.get(at + 1).and_then(|(_, text)| text.chars().next());
        let is_free =
            |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '*' && c != '>');
        // Asterisks are marks only at the ends of words.
        let is_word = text.chars().all(char::is_alphanumeric);
        let next_is_marked = pieces
            .get(at + 1)
            .is_some_and(|(font, _)| *font != Font::Roman);
        let asterisks = !next_is_marked && is_free(before) && (is_word || is_free(after));
        let text = escaped(text);
        let marked = match (font, asterisks) {
            (Font::Roman, _) => text,
            (Font::Bold, true) => format!("**{text}**"),
            (Font::Italic, true) => format!("*{text}*"),
            (Font::Bold, false) => format!("<b>{text}</b>"),
            (Font::Italic, false) => format!("<i>{text}</i>"),
        };
        line += &marked;
    }
    line
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '~' | '[' | ']' => escaped.extend(['\\', c]),
            '<' => escaped += "&lt;",
            '&' => escaped += "&amp;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// References to other pages become links.
fn linked(line: &str, pages: &BTreeSet<String>) -> String {
    pages.iter().fold(line.to_owned(), |line, page| {
        let (name, section) = page.rsplit_once('.').expect("NAME.SECTION");
        let target = format!("[{name}({section})]({page}.md)");
        line.replace(&format!("**{name}**({section})"), &target)
    })
}

/// The list of all pages, with the line of each under NAME.
pub(super) fn index(pages: &[(String, String)]) -> String {
    let mut text = "# Manual pages of dlock\n\n\
        `make html` makes them as HTML, and `man dlock` shows them where dlock is installed.\n\n\
        | page | content |\n|---|---|\n"
        .to_owned();
    let mut sorted: Vec<_> = pages
        .iter()
        .map(|(page, source)| (page.rsplit_once('.').expect("NAME.SECTION"), page, source))
        .collect();
    sorted.sort_by_key(|((name, section), ..)| (*section, *name));
    for ((name, section), page, source) in sorted {
        let line = source.split(".SH NAME\n").nth(1).and_then(|rest| {
            let (_, content) = rest.lines().next()?.split_once(" \\- ")?;
            Some(plain(content))
        });
        let content = line.expect("a line under NAME");
        writeln!(text, "| [{name}({section})]({page}.md) | {content} |").unwrap();
    }
    text
}

#[test]
fn macros_become_markdown() {
    let page = ".TH DLOCK\\-X 1 \"date\"\n.SH NAME\ndlock\\-x \\- a page\n.SH \"TWO WORDS\"\nA text with\n.B \\-\\-wait\nand\n\
        .BR dlock\\-y (7),\n.RB ( \\-\\-all ),\n.BI \\-\\-local= DIR\nand DLOCK_KEY.\n.TP\n\\fB\\-n\\fR, \\fB\\-\\-no\\fR\n\
        Do not *wait*\n\nAt all.\n.RS\n.TP\n.B inner\n- text\n.RE\n.PP\n.RS 4\n.nf\n\\&.x \\-\\- \"a\\eb\"\n.fi\n.RE\n\
        .TS\nl l.\na\tb_c\n1\t2\n.TE\n.IP \\(bu 2\nOne.\n.IP 1. 4\nTwo\n";
    let wanted = "# dlock-x(1)\n\n## NAME\n\ndlock-x - a page\n\n## TWO WORDS\n\nA text with\n**--wait**\nand\n\
        [dlock-y(7)](dlock-y.7.md),\n(**--all**),\n<b>--local=</b><i>DIR</i>\nand DLOCK\\_KEY.\n\n- **-n**, **--no**\\\n  \
        Do not \\*wait\\*\n\n  At all.\n\n  - **inner**\\\n    \\- text\n\n```\n.x -- \"a\\b\"\n```\n\n\
        | a | b\\_c |\n|---|---|\n| 1 | 2 |\n\n- One.\n\n1. Two\n";
    let pages = BTreeSet::from(["dlock-y.7".to_owned()]);
    assert_eq!(convert(page, &pages), wanted);
}
