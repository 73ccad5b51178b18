//! A good server of HTTP/1.1, which answers each request with its path.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

/// Answers each request with its path.
pub(super) fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    while let Some((method, path)) = next_request(&mut requests)? {
        own(&mut stream, &method, &path)?;
    }
    Ok(())
}

pub(super) fn own(stream: &mut impl Write, method: &str, path: &str) -> io::Result<()> {
    let body = if method == "HEAD" { "" } else { path };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", path.len())
}

/// The method and the path of the next request, which has no body; `None`: there is none.
pub(super) fn next_request(requests: &mut impl BufRead) -> io::Result<Option<(String, String)>> {
    let (mut line, mut first) = (String::new(), None);
    while requests.read_line(&mut line)? > 0 {
        if line == "\r\n" {
            return Ok(first);
        }
        let mut words = line.split(' ').map(str::to_owned);
        first = first.or_else(|| Some((words.next()?, words.next()?)));
        line.clear();
    }
    Ok(None)
}
