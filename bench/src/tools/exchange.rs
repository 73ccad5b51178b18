//! What Redis is asked, and what it answers.

use std::io::{Read, Write};

use anyhow::{Result, ensure};

/// One command, and the answer that it must have.
pub(super) struct Exchange {
    pub(super) question: Vec<u8>,
    pub(super) answer: Vec<u8>,
    /// Comes before, on each connection.
    preparation: Option<Box<Exchange>>,
}

impl Exchange {
    pub(super) fn ping() -> Self {
        Self { question: b"PING\r\n".into(), answer: b"+PONG\r\n".into(), preparation: None }
    }

    /// Stores a value of so many bytes.
    pub(super) fn set(bytes: usize) -> Self {
        let question = command(&[b"SET", &key(bytes), &value(bytes)]);
        Self { question, answer: b"+OK\r\n".into(), preparation: None }
    }

    /// Reads a value of so many bytes.
    pub(super) fn get(bytes: usize) -> Self {
        let answer = [format!("${bytes}\r\n").as_bytes(), &value(bytes), b"\r\n"].concat();
        let preparation = Some(Box::new(Self::set(bytes)));
        Self { question: command(&[b"GET", &key(bytes)]), answer, preparation }
    }

    /// Stores the value that is to be read.
    pub(super) fn prepare(&self, stream: &mut (impl Read + Write)) -> Result<()> {
        self.preparation.as_ref().map_or(Ok(()), |preparation| preparation.once(stream))
    }

    /// Asks once, and waits for the answer.
    pub(super) fn once(&self, stream: &mut (impl Read + Write)) -> Result<()> {
        stream.write_all(&self.question)?;
        stream.flush()?;
        let mut rest = &self.answer[..];
        let mut buffer = [0; 4096];
        while !rest.is_empty() {
            let room = rest.len().min(buffer.len());
            let read = stream.read(&mut buffer[..room])?;
            ensure!(read > 0, "Redis closed the connection");
            let answer = &buffer[..read];
            let begin = &answer[..read.min(100)];
            ensure!(rest.starts_with(answer), "Redis answered {:?}", String::from_utf8_lossy(begin));
            rest = &rest[read..];
        }
        Ok(())
    }
}

fn key(bytes: usize) -> Vec<u8> {
    format!("value-of-{bytes}").into()
}

/// Its period divides no length of a record or segment, so that one which is lost or repeated shows.
fn value(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| b'a' + (position % 23) as u8).collect()
}

/// A command in Redis' protocol (RESP).
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_redis() {
        assert_eq!(Exchange::set(3).question, b"*3\r\n$3\r\nSET\r\n$10\r\nvalue-of-3\r\n$3\r\nabc\r\n");
        let get = Exchange::get(3);
        assert_eq!(get.question, b"*2\r\n$3\r\nGET\r\n$10\r\nvalue-of-3\r\n");
        assert_eq!(get.answer, b"$3\r\nabc\r\n");
    }

    #[test]
    fn another_answer_is_an_error() {
        struct Says(&'static [u8], Vec<u8>);
        impl Read for Says {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(into)
            }
        }
        impl Write for Says {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.1.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut redis = Says(b"+OK\r\n$3\r\nabc\r\n", Vec::new());
        let get = Exchange::get(3);
        get.prepare(&mut redis).unwrap();
        get.once(&mut redis).unwrap();
        assert_eq!(redis.1, [Exchange::set(3).question, get.question.clone()].concat());
        assert!(get.once(&mut Says(b"$3\r\nabd\r\n", Vec::new())).is_err());
    }
}
