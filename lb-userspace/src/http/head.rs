//! The head of a request, as a server is to get it.

use super::sent::Sent;
use crate::serving::Pool;
use http::header::{CONNECTION, EXPECT, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, Version};
use std::mem;

/// The head of a request, as a server is to get it.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    /// Absent: the client has named none.
    pub(super) host: Option<HeaderValue>,
    /// Without those of a connection, and without `Host`.
    pub(super) headers: HeaderMap,
    /// The protocol that the client wants to go over to.
    pub(super) upgrade: Option<HeaderValue>,
}

impl Head {
    /// The request in HTTP/1.1. The headers go with it.
    pub(super) fn take_http1(&mut self, body: Sent) -> Request<Sent> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        let mut headers = mem::take(&mut self.headers);
        headers.insert(HOST, self.host.clone().unwrap_or(HeaderValue::from_static("")));
        if let Some(protocol) = &self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
        if request.body().announce(&mut headers) {
            // For GET and HEAD, hyper takes a body without a length for none.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        *request.headers_mut() = headers;
        request
    }

    /// The same in HTTP/2; `None`: the host cannot be said there.
    pub(super) fn take_http2(&mut self, body: Sent, pool: &Pool) -> Option<Request<Sent>> {
        let host = self.host.as_ref().map_or("localhost".as_bytes(), HeaderValue::as_bytes);
        let authority = Authority::try_from(host).ok()?;
        let scheme = if pool.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder().scheme(scheme).authority(authority);
        let uri = uri.path_and_query(self.path.clone()).build().ok()?;
        let mut request = Request::new(body);
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        let mut headers = mem::take(&mut self.headers);
        [HOST, CONNECTION, UPGRADE, EXPECT, TRANSFER_ENCODING]
            .iter()
            .for_each(|name| _ = headers.remove(name));
        request.body().announce(&mut headers);
        *request.headers_mut() = headers;
        Some(request)
    }
}
