//! As much Markdown as our own documents use, written as HTML: headings, paragraphs, lists, tables, code, links, emphasis.
//!
//! Everything that is not one of these is text, and text is escaped: there is no way for markup to come through.

/// What a line continues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    Paragraph,
    List(&'static str),
    Table,
    Code,
}

impl Block {
    fn end(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Paragraph => "</p>\n",
            Self::List("ol") => "</li></ol>\n",
            Self::List(_) => "</li></ul>\n",
            Self::Table => "</table>\n",
            Self::Code => "</pre>\n",
        }
    }
}

pub(super) fn to_html(markdown: &str) -> String {
    let mut html = String::with_capacity(markdown.len() * 5 / 4);
    let mut block = Block::None;
    let go_to = |html: &mut String, block: &mut Block, next: Block| {
        html.push_str(block.end());
        *block = next;
    };
    for line in markdown.lines() {
        if block == Block::Code {
            if line.trim_start().starts_with("```") {
                go_to(&mut html, &mut block, Block::None);
            } else {
                escape(&mut html, line);
                html.push('\n');
            }
            continue;
        }
        let text = line.trim();
        if text.is_empty() {
            go_to(&mut html, &mut block, Block::None);
        } else if text.starts_with("```") {
            go_to(&mut html, &mut block, Block::Code);
            html.push_str("<pre>");
        } else if let Some((level, title)) = heading(line) {
            go_to(&mut html, &mut block, Block::None);
            html.push_str(&format!("<h{level} id=\"{}\">", anchor(title)));
            inline(&mut html, title);
            html.push_str(&format!("</h{level}>\n"));
        } else if text.starts_with('|') {
            if block == Block::Table {
                // The row of dashes between a table's head and its rows says nothing more.
                if !text.chars().all(|c| matches!(c, '|' | '-' | ':' | ' ')) {
                    row(&mut html, text, "td");
                }
            } else {
                go_to(&mut html, &mut block, Block::Table);
                html.push_str("<table>");
                row(&mut html, text, "th");
            }
        } else if let Some((kind, item)) = item(text) {
            if block == Block::List(kind) {
                html.push_str("</li>\n");
            } else {
                go_to(&mut html, &mut block, Block::List(kind));
                html.push_str(if kind == "ol" { "<ol>" } else { "<ul>" });
            }
            html.push_str("<li>");
            inline(&mut html, item);
        } else {
            match block {
                Block::Paragraph | Block::List(_) => html.push('\n'),
                Block::None | Block::Table | Block::Code => {
                    go_to(&mut html, &mut block, Block::Paragraph);
                    html.push_str("<p>");
                }
            }
            inline(&mut html, text);
        }
    }
    html.push_str(block.end());
    html
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    let title = line.get(level..)?.strip_prefix(' ')?;
    (1..=6).contains(&level).then(|| (level, title.trim()))
}

/// A heading's address within its page.
fn anchor(title: &str) -> String {
    let plain = title.to_lowercase();
    plain
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn item(text: &str) -> Option<(&'static str, &str)> {
    if let Some(item) = text.strip_prefix("- ").or_else(|| text.strip_prefix("* ")) {
        return Some(("ul", item));
    }
    let (number, item) = text.split_once(". ")?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(("ol", item))
}

fn row(html: &mut String, text: &str, cell: &str) {
    html.push_str("<tr>");
    let text = text.trim_matches('|').replace("\\|", "\u{1}");
    for part in text.split('|') {
        html.push_str(&format!("<{cell}>"));
        inline(html, &part.trim().replace('\u{1}', "|"));
        html.push_str(&format!("</{cell}>"));
    }
    html.push_str("</tr>\n");
}

fn inline(html: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(['`', '[', '*']) {
        escape(html, &rest[..at]);
        rest = &rest[at..];
        let marked = enclosed(rest, "`", "`")
            .map(|(code, after)| (format!("<code>{}</code>", escaped(code)), after))
            .or_else(|| link(rest))
            .or_else(|| {
                enclosed(rest, "**", "**").map(|(bold, after)| (format!("<strong>{}</strong>", escaped(bold)), after))
            })
            .or_else(|| enclosed(rest, "*", "*").map(|(soft, after)| (format!("<em>{}</em>", escaped(soft)), after)));
        if let Some((marked, after)) = marked {
            html.push_str(&marked);
            rest = after;
        } else {
            // Each of the three is one byte.
            html.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    escape(html, rest);
}

fn enclosed<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    let (inner, after) = text.strip_prefix(open)?.split_once(close)?;
    let is_text = !inner.is_empty() && !inner.starts_with(' ') && !inner.ends_with(' ');
    (is_text || (open == "`" && !inner.is_empty())).then_some((inner, after))
}

/// `[text](address)`; only addresses that lead to a page.
fn link(text: &str) -> Option<(String, &str)> {
    let (label, after) = text.strip_prefix('[')?.split_once("](")?;
    let (address, after) = after.split_once(')')?;
    let leads =
        ["https://", "http://", "/", "#"].iter().any(|start| address.starts_with(start)) || !address.contains(':');
    let address = page_of(address);
    leads.then(|| (format!("<a href=\"{}\">{}</a>", escaped(&address), escaped(label)), after))
}

/// Where a link between documents leads when they are pages: the same name without its ending.
fn page_of(address: &str) -> String {
    if address.contains("://") {
        return address.to_owned();
    }
    let (document, place) = address.find('#').map_or((address, ""), |at| address.split_at(at));
    format!("{}{place}", document.strip_suffix(".md").unwrap_or(document))
}

fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    escape(&mut html, text);
    html
}

fn escape(html: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            other => html.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_markdown_that_we_write_becomes_html() {
        for (markdown, html) in [
            (
                "# A & B\ntext `<x>` **bold**\nmore",
                "<h1 id=\"a--b\">A &amp; B</h1>\n<p>text <code>&lt;x&gt;</code> <strong>bold</strong>\nmore</p>\n",
            ),
            ("- one\n  more\n- two\n\nend", "<ul><li>one\nmore</li>\n<li>two</li></ul>\n<p>end</p>\n"),
            ("1. one\n2. two", "<ol><li>one</li>\n<li>two</li></ol>\n"),
            (
                "| a | b |\n| --- | --- |\n| `x` | 1 |",
                "<table><tr><th>a</th><th>b</th></tr>\n<tr><td><code>x</code></td><td>1</td></tr>\n</table>\n",
            ),
            ("```text\n# <no>\n\n```\n", "<pre># &lt;no&gt;\n\n</pre>\n"),
            (
                "[docs](websocket.md) [x](javascript:alert)",
                "<p><a href=\"websocket\">docs</a> [x](javascript:alert)</p>\n",
            ),
            (
                "[a](operating.md#limits) [b](#c) [d](https://example.org/e.md)",
                "<p><a href=\"operating#limits\">a</a> <a href=\"#c\">b</a> <a href=\"https://example.org/e.md\">d</a></p>\n",
            ),
            ("2 * 3 * 4 [ ` end", "<p>2 * 3 * 4 [ ` end</p>\n"),
        ] {
            assert_eq!(to_html(markdown), html, "{markdown}");
        }
    }

    #[test]
    fn no_markup_comes_through() {
        let html = to_html("<script>alert(1)</script> `</code><b>` [<i>](/\"><b>) # <x\n| <td> |\n- <li>");
        for tag in ["<script", "<b>", "<i>", "<x", "<td> ", "<li><li>"] {
            assert!(!html.contains(tag), "{tag}: {html}");
        }
    }
}
