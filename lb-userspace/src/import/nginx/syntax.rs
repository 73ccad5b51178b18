//! nginx's syntax: words, ended by `;` or followed by a block.

use crate::config::quote;
use crate::import::model::{At, Note};
use crate::import::words::said;
use crate::import::yaml::Unreadable;

/// Blocks within blocks.
const DEEPEST: usize = 16;

/// What says nothing about who reaches what.
const ASIDE: [&str; 14] = [
    "access_log",
    "error_log",
    "log_format",
    "tcp_nodelay",
    "resolver",
    "resolver_timeout",
    "map_hash_bucket_size",
    "map_hash_max_size",
    "variables_hash_max_size",
    "variables_hash_bucket_size",
    "preread_buffer_size",
    "proxy_buffer_size",
    "proxy_socket_keepalive",
    "status_zone",
];

#[derive(Debug)]
pub(super) struct Directive {
    pub(super) at: At,
    /// Not empty.
    pub(super) words: Vec<String>,
    pub(super) block: Option<Vec<Directive>>,
}

impl Directive {
    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn said(&self) -> String {
        said(&self.words)
    }

    pub(super) fn quoted(&self) -> String {
        quote(&self.said())
    }

    /// Whether it is none that is to be taken over.
    pub(super) fn is_aside(&self) -> bool {
        ASIDE.contains(&self.name())
    }

    pub(super) fn unknown(&self) -> Note {
        Note::lost(self.at, format!("{}: not taken over", self.quoted()))
    }

    pub(super) fn aside(&self) -> Note {
        Note::left_out(self.at, format!("{}: says nothing about who reaches what", self.quoted()))
    }
}

enum Token {
    Word(String),
    End,
    Open,
    Close,
}

/// The directives of a file.
pub(super) fn parse(text: &str, file: usize) -> Result<Vec<Directive>, Unreadable> {
    // The blocks that are open, each with what its directive has said.
    let mut open: Vec<(At, Vec<String>, Vec<Directive>)> = Vec::new();
    let (mut current, mut words, mut begin) = (Vec::new(), Vec::new(), 0);
    let error = |line, message: &str| Unreadable { line, message: message.to_owned() };
    for (line, token) in tokens(text)? {
        let at = At { file, line: if words.is_empty() { line } else { begin } };
        match token {
            Token::Word(word) => {
                begin = at.line;
                words.push(word);
            }
            Token::End if words.is_empty() => return Err(error(line, "`;` without a directive")),
            Token::End => current.push(Directive { at, words: std::mem::take(&mut words), block: None }),
            Token::Open if words.is_empty() => return Err(error(line, "`{` without a directive")),
            Token::Open if open.len() == DEEPEST => return Err(error(line, "too many blocks within blocks")),
            Token::Open => open.push((at, std::mem::take(&mut words), std::mem::take(&mut current))),
            Token::Close => {
                if !words.is_empty() {
                    return Err(error(line, "`;` is missing before `}`"));
                }
                let Some((at, words, around)) = open.pop() else {
                    return Err(error(line, "`}` without `{`"));
                };
                let block = Some(std::mem::replace(&mut current, around));
                current.push(Directive { at, words, block });
            }
        }
    }
    match (open.last(), words.is_empty()) {
        (Some((at, ..)), _) => Err(error(at.line, "this block has no end")),
        (None, false) => Err(error(begin, "`;` is missing")),
        (None, true) => Ok(current),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Unreadable> {
    let mut tokens = Vec::new();
    let (mut line, mut chars) = (1, text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|&c| c != '\n').is_some() {},
            ';' => tokens.push((line, Token::End)),
            '{' => tokens.push((line, Token::Open)),
            '}' => tokens.push((line, Token::Close)),
            '"' | '\'' => {
                let (begin, mut word) = (line, String::new());
                loop {
                    let Some(mut next) = chars.next() else {
                        return Err(Unreadable {
                            line: begin,
                            message: "a quote without its end".to_owned(),
                        });
                    };
                    if next == c {
                        break;
                    }
                    if next == '\\' {
                        next = chars.next().unwrap_or('\\');
                    }
                    line += usize::from(next == '\n');
                    word.push(next);
                }
                tokens.push((begin, Token::Word(word)));
            }
            c => {
                let mut word = String::from(c);
                // `${name}` is a part of a word.
                let mut variable = false;
                while let Some(next) =
                    chars.next_if(|&c| variable || !(c.is_whitespace() || matches!(c, ';' | '{' | '}')))
                {
                    line += usize::from(next == '\n');
                    variable &= next != '}';
                    word.push(next);
                    if next == '$' && chars.peek() == Some(&'{') {
                        variable = true;
                    }
                }
                tokens.push((line, Token::Word(word)));
            }
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(directives: &[Directive]) -> String {
        let one = |directive: &Directive| {
            let block =
                directive.block.as_deref().map_or(String::new(), |block| format!("({})", shown(block)));
            format!("{}:{}{block}", directive.at.line, directive.words.join("|"))
        };
        directives.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn directives_have_words_and_blocks() {
        let text = "# c\na b 'c d;';\ne {\n  f \"g\\\"\"\n    h; # i\n}\nj a${k}b;";
        assert_eq!(shown(&parse(text, 0).unwrap()), "2:a|b|c d; 3:e(4:f|g\"|h) 7:j|a${k}b");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (text, line) in
            [("a", 1), ("a;\n}", 2), ("a {\n", 1), ("\n{}", 2), ("a { b }", 1), ("'a", 1), (";", 1)]
        {
            assert_eq!(parse(text, 0).unwrap_err().line, line, "{text}");
        }
        let deep = "a {".repeat(DEEPEST + 1);
        assert!(parse(&deep, 0).unwrap_err().message.contains("too many"));
    }
}
