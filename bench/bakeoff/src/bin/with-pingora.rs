//! pingora as its manual has it: one runtime of as many threads, and one pool of connections to servers for all of them.

use async_trait::async_trait;
use bakeoff::{Args, MOST_IDLE, Rules, WORKERS};
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Proxy(Rules);

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, session: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let server = self.0.server(session.req_header().uri.path());
        let server = server.ok_or_else(|| Error::new(ErrorType::HTTPStatus(404)))?;
        Ok(Box::new(HttpPeer::new(server, false, String::new())))
    }
}

fn main() {
    let args = Args::parse();
    let conf =
        ServerConf { threads: WORKERS, upstream_keepalive_pool_size: MOST_IDLE, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut tls = TlsSettings::intermediate(&args.chain, &args.key).expect("a certificate and its key");
    tls.enable_h2();
    let mut proxy = http_proxy_service(&server.configuration, Proxy(Rules::new(args.server)));
    proxy.add_tls_with_settings(&args.listen.to_string(), None, tls);
    server.add_service(proxy);
    server.run_forever();
}
