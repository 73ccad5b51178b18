//! The closed sets of reasons. Each variant has exactly one metric name; one without does not compile.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use lb_common::packet::Side;

/// Declares a closed set of reasons with their metric names (`snake_case`, stable, never text from a client).
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every variant, in order of declaration: `ALL[r as usize] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in metrics, the access log and `status`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

reasons! {
    /// Why a client was turned away before it had a route.
    RejectReason {
        /// The client's address is in `deny`, or not in `allow`.
        AddressDenied = "address_denied",
        /// The gateway's `max_connections` is reached.
        GatewayFull = "gateway_full",
        /// The listener's `max_connections` is reached.
        ListenerFull = "listener_full",
        /// The client's address has opened more connections to the listener than its `client_rate` allows.
        ClientRate = "client_rate",
        /// The client's address has as many connections to the listener as its `client_rate` allows.
        ClientFull = "client_full",
        /// The peer is in `trusted_proxies` and sent no PROXY header, or a malformed one.
        ProxyHeaderMalformed = "proxy_header_malformed",
        /// The client closed before it sent a byte (a port scan, a TCP health check).
        ClosedBeforeData = "closed_before_data",
        /// The client closed, or reset, in the middle of its preamble or ClientHello.
        ClosedBeforeHello = "closed_before_hello",
        /// `hello_timeout` passed before the ClientHello was complete.
        HelloTimeout = "hello_timeout",
        /// The first bytes are not a TLS handshake record.
        NotTls = "not_tls",
        /// A TLS record or handshake message that contradicts itself.
        HelloMalformed = "hello_malformed",
        /// The ClientHello is longer than 131 396 bytes, or the records that carry it are longer than 160 KiB.
        HelloTooLarge = "hello_too_large",
        /// The server_name extension holds several names or none (RFC 6066, section 3); or something that is no DNS
        /// host name, and the listener has no default route.
        SniInvalid = "sni_invalid",
        /// A PostgreSQL client asked for a session without TLS.
        PostgresCleartext = "postgres_cleartext",
        /// A PostgreSQL CancelRequest in clear text, whose key is of no session of a terminated route; or the client's address
        /// has sent too many.
        PostgresCancelCleartext = "postgres_cancel_cleartext",
        /// A PostgreSQL CancelRequest in clear text for a session of another gateway (`peers`), which it was passed on to.
        PostgresCancelForwarded = "postgres_cancel_forwarded",
        /// Neither SSLRequest, GSSENCRequest, StartupMessage, CancelRequest nor TLS.
        PostgresMalformed = "postgres_malformed",
        /// Bytes followed an SSLRequest before it was answered (CVE-2021-23222).
        PostgresStuffed = "postgres_stuffed",
        /// A client of SMTP, IMAP, POP3, LDAP or XMPP that leaves, or goes on, without asking for TLS.
        StarttlsCleartext = "starttls_cleartext",
        /// Something else than the listener's SMTP, IMAP, POP3, LDAP or XMPP.
        StarttlsMalformed = "starttls_malformed",
        /// Bytes followed the command for TLS before it was answered (CVE-2011-0411).
        StarttlsStuffed = "starttls_stuffed",
        /// None of the servers behind a MySQL listener has been heard yet, so there is nothing to greet its clients with.
        MysqlNoServer = "mysql_no_server",
        /// A MySQL client that logs in without TLS.
        MysqlCleartext = "mysql_cleartext",
        /// What follows the greeting is no packet of a MySQL client.
        MysqlMalformed = "mysql_malformed",
        /// The Encrypted ClientHello, or what is in it, contradicts RFC 9849.
        EchMalformed = "ech_malformed",
        /// The client's address has sent more Encrypted ClientHellos than `ech` allows to be opened.
        EchRate = "ech_rate",
        /// No route covers this SNI.
        UnknownSni = "unknown_sni",
        /// The client sent no SNI, or an IP address, and the listener has no default route.
        NoSni = "no_sni",
        /// Routes cover the SNI, but none of them an ALPN protocol that the client offers; or a client that begins TLS
        /// without SSLRequest on a PostgreSQL listener does not offer `postgresql`.
        AlpnMismatch = "alpn_mismatch",
        /// The route's `max_connections` is reached.
        RouteFull = "route_full",
        /// The client's address has opened more connections to the route than its `client_rate` allows.
        RouteClientRate = "route_client_rate",
        /// The client's address has as many connections to the route as its `client_rate` allows.
        RouteClientFull = "route_client_full",
    }
}

reasons! {
    /// What became of a client's Encrypted ClientHello on a listener with `ech`.
    EchResult {
        /// It was opened, and the route chosen by the name in it.
        Accepted = "accepted",
        /// It does not open: it is GREASE, or its key is not one of the listener's. The route is that of the outer name.
        NotOpened = "outdated_or_grease",
        /// It was opened, and its route ends TLS, which takes no ECH: the route is that of the outer name.
        Terminated = "terminated",
    }
}

reasons! {
    /// What a client sends in the server_name extension instead of a DNS host name. Only a default route accepts it.
    OddName {
        /// An IP address, which RFC 6066, section 3, forbids; it counts as no SNI.
        IpAddress = "ip_address",
        /// Anything else.
        NotAName = "not_a_name",
    }
}

reasons! {
    /// Why a routed connection ended.
    CloseReason {
        /// The client sent its FIN first; both directions then finished.
        ClientClosed = "client_closed",
        /// The server sent its FIN first; both directions then finished.
        ServerClosed = "server_closed",
        /// The client reset the connection.
        ClientReset = "client_reset",
        /// The server reset the connection.
        ServerReset = "server_reset",
        /// No byte in either direction for the route's `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// Its request of HTTP took longer than the rule allows, when the answer had begun.
        RequestTimeout = "request_timeout",
        /// It reached the route's `max_age`.
        MaxAge = "max_age",
        /// The pool has no server that takes connections, though none is down: drained, without an address, or none at all.
        NoServer = "no_server",
        /// No server of the pool takes connections, and at least one because it is down.
        PoolDown = "pool_down",
        /// Each server of the pool has as many connections as its `max_connections` allows, and none ended in time.
        ServersFull = "servers_full",
        /// Every server that was tried refused, or was unreachable.
        ConnectFailed = "connect_failed",
        /// The last server that was tried did not answer within `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// The last server that was tried did not answer the client's address within `connect_timeout` (pools with `source =
        /// "client"`): its answers may not be routed through the gateway.
        ClientAddressUnanswered = "client_address_unanswered",
        /// The client's address cannot be a source toward any server of the pool (`source = "client"`): it is of the other
        /// family, link-local, or no host's.
        ClientAddressUnusable = "client_address_unusable",
        /// The server refused TLS in its PostgreSQL, MySQL or STARTTLS preamble, refused the connection there, or said something
        /// else.
        ServerPreamble = "server_preamble",
        /// A PostgreSQL CancelRequest that was passed on to the session's server, or to its gateway.
        CancelRequest = "cancel_request",
        /// A PostgreSQL CancelRequest inside TLS whose key is of no session of a terminated route; or the client's address has
        /// sent too many.
        CancelUnknown = "cancel_unknown",
        /// Its server went down, and the pool's `on_down` is `kill`.
        ServerDown = "server_down",
        /// The TLS handshake with the last server that was tried failed (pools with `tls`); or it did not answer an inner
        /// ClientHello in time (`ech` in split mode).
        ServerTlsFailed = "server_tls_failed",
        /// A TLS record of the server that cannot be decrypted, or a fatal alert of it, after the handshake (pools with `tls`).
        ServerTlsError = "server_tls_error",
        /// A MySQL client of a terminated route did not log in within `hello_timeout`, or its login contradicts the protocol.
        ClientLogin = "client_login",
        /// The TLS handshake with the client failed (terminated routes); or its second ClientHello is none, or did not come in
        /// time (`ech` in split mode).
        TlsHandshakeFailed = "tls_handshake_failed",
        /// A TLS record of the client that cannot be decrypted, or a fatal alert of it, after the handshake.
        TlsError = "tls_error",
        /// The gateway stopped, and `drain_timeout` had passed.
        Shutdown = "shutdown",
        /// An operator ended it.
        Killed = "killed",
        /// A reload took its route away, whose `on_removal` says that it ends.
        RouteRemoved = "route_removed",
        /// The client's HTTP was malformed, and was answered with an error where that was possible.
        HttpError = "http_error",
        /// The gateway has asked the client to come again, because the route or the listener is gone or the gateway stops; or
        /// has closed an idle connection of HTTP.
        Dismissed = "dismissed",
        /// The gateway ran out of a resource (descriptors, memory).
        Resource = "resource",
        /// A new IPsec policy wants its packets encrypted, which the packet tier cannot do.
        IpsecPolicy = "ipsec_policy",
        /// The kernel lost or repeated a byte between the two sockets; both ends were reset.
        KernelFault = "kernel_fault",
    }
}

impl CloseReason {
    /// The end at this side sent its FIN first, and both directions finished.
    pub const fn closed_by(side: Side) -> Self {
        match side {
            Side::Client => Self::ClientClosed,
            Side::Server => Self::ServerClosed,
        }
    }

    /// TLS with the end at this side failed, after the handshake.
    pub const fn tls_error_of(side: Side) -> Self {
        match side {
            Side::Client => Self::TlsError,
            Side::Server => Self::ServerTlsError,
        }
    }

    /// The end at this side reset the connection.
    pub const fn reset_by(side: Side) -> Self {
        match side {
            Side::Client => Self::ClientReset,
            Side::Server => Self::ServerReset,
        }
    }
}

/// Why a client that spoke TLS was not connected to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// It had no route.
    Rejected(RejectReason),
    /// It had one, but its handshake failed, or no server could be connected.
    Closed(CloseReason),
}

reasons! {
    /// Why a request of HTTP was answered by the gateway itself, or its answer broken off.
    HttpAnswer {
        /// What the client sent is no request, or one whose end a server might see elsewhere.
        Malformed = "malformed",
        /// Its head is too long.
        HeadTooLarge = "head_too_large",
        /// It names no host, several, or something that is none.
        BadHost = "bad_host",
        /// A server may take its path for another one.
        BadPath = "bad_path",
        /// A method or a coding that the gateway does not serve.
        NotImplemented = "not_implemented",
        /// No route of the listener has its host.
        NoRoute = "no_route",
        /// None of the route's rules is for it.
        NoRule = "no_rule",
        /// Its host is that of another route than its connection's.
        Misdirected = "misdirected",
        /// Its rule redirects it.
        Redirected = "redirected",
        /// It was a browser's question about other origins (CORS).
        Preflight = "preflight",
        /// Its rule has no backend, or what it names is not to be had.
        NoBackend = "no_backend",
        /// The pool has no server that takes connections, though none is down.
        NoServer = "no_server",
        /// No server of the pool takes connections, and at least one because it is down.
        PoolDown = "pool_down",
        /// Each server of the pool has as many requests as its `max_connections` allows.
        ServersFull = "servers_full",
        /// Every server that was tried refused, was unreachable, or did not answer within `connect_timeout`.
        ConnectFailed = "connect_failed",
        /// TLS with the last server that was tried failed.
        ServerTlsFailed = "server_tls_failed",
        /// The server ended the connection before or in its answer, or answered with something that is none.
        ServerFailed = "server_failed",
        /// The client has broken off the body of its request.
        ClientFailed = "client_failed",
        /// It took longer than the rule allows.
        RequestTimeout = "request_timeout",
        /// A server took longer than the rule allows for one attempt.
        BackendTimeout = "backend_timeout",
        /// Nothing of it has moved for the route's `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// Its server went down, and the pool's `on_down` is `kill`.
        ServerDown = "server_down",
        /// A reload took its route away, whose `on_removal` says that it ends.
        RouteRemoved = "route_removed",
        /// The gateway ran out of a resource.
        Resource = "resource",
    }
}

reasons! {
    /// Why TLS with a peer failed: with a client of a terminated route, or with Encrypted ClientHello in split mode, the cause
    /// of [`CloseReason::TlsHandshakeFailed`] and [`CloseReason::TlsError`]; or with a server of a pool with `tls`, or in that
    /// mode, that of [`CloseReason::ServerTlsFailed`] and [`CloseReason::ServerTlsError`]. Those that begin with `alert_` are
    /// alerts of the peer.
    TlsError {
        /// The peer supports neither TLS 1.2 nor TLS 1.3; a server, not the pool's `min_version`.
        NoSharedVersion = "no_shared_version",
        /// The client offers no cipher suite that the gateway has and the certificate's key can be used with.
        NoSharedSuite = "no_shared_suite",
        /// The client offers no group (curve) for the key exchange that the gateway has.
        NoSharedGroup = "no_shared_group",
        /// The peer accepts no signature algorithm of the key of the gateway's certificate.
        NoSharedSignature = "no_shared_signature",
        /// The peer lacks something else that TLS needs.
        Incompatible = "incompatible",
        /// The client showed no certificate, and the route requires one.
        CertificateRequired = "certificate_required",
        /// The peer's certificate has no chain to one of the route's authorities, or to the pool's `ca`.
        UnknownCa = "unknown_ca",
        /// The server's certificate is for other names.
        CertificateName = "certificate_name",
        /// The peer's certificate, or one of its chain, has expired.
        CertificateExpired = "certificate_expired",
        /// The peer's certificate, or one of its chain, is not valid yet.
        CertificateNotYetValid = "certificate_not_yet_valid",
        /// The peer's certificate is for the other role only (clients, servers), or is that of an authority.
        CertificatePurpose = "certificate_purpose",
        /// The peer's certificate is X.509 version 1 or 2; that of a client, and not itself in `ca`.
        CertificateVersion = "certificate_version",
        /// The peer's certificate is malformed or wrongly signed, or the peer does not have its key.
        CertificateInvalid = "certificate_invalid",
        /// The client's certificate, or one of its chain, is in a CRL.
        CertificateRevoked = "certificate_revoked",
        /// The client's certificate is good, and has none of the names that are allowed.
        CertificateNotAllowed = "certificate_not_allowed",
        /// None of the CRLs is about the client's certificate, or about one of its chain.
        CrlMissing = "crl_missing",
        /// The CRL that is about the client's certificate has expired.
        CrlExpired = "crl_expired",
        /// The CRL that is about the client's certificate is not signed by its issuer.
        CrlInvalid = "crl_invalid",
        /// The peer does not trust the authority that signed the gateway's certificate.
        AlertUnknownCa = "alert_unknown_ca",
        /// The peer rejects the gateway's certificate; many clients mean that it is for another name.
        AlertBadCertificate = "alert_bad_certificate",
        /// The peer does not support this kind of certificate.
        AlertUnsupportedCertificate = "alert_unsupported_certificate",
        /// The peer says that the gateway's certificate is revoked.
        AlertCertificateRevoked = "alert_certificate_revoked",
        /// The peer says that the gateway's certificate has expired.
        AlertCertificateExpired = "alert_certificate_expired",
        /// The peer rejects the gateway's certificate for a reason that it does not tell.
        AlertCertificateUnknown = "alert_certificate_unknown",
        /// The server wants a certificate, and the pool has none.
        AlertCertificateRequired = "alert_certificate_required",
        /// The server does not go by the name that it was called (SNI).
        AlertUnrecognizedName = "alert_unrecognized_name",
        /// The peer does not accept the parameters that the gateway has chosen or offers.
        AlertHandshakeFailure = "alert_handshake_failure",
        /// The peer does not accept the version that the gateway has chosen, or any that it offers.
        AlertProtocolVersion = "alert_protocol_version",
        /// Any other alert of the peer.
        AlertOther = "alert_other",
        /// The peer closed the connection during the handshake.
        Closed = "closed",
        /// The peer reset the connection during the handshake.
        Reset = "reset",
        /// The handshake was not complete within `hello_timeout`, or with a server within `connect_timeout`.
        Timeout = "timeout",
        /// The peer violated the TLS protocol.
        ProtocolViolation = "protocol_violation",
        /// A record could not be decrypted: it was changed on the way, or is no TLS record.
        Undecryptable = "undecryptable",
        /// New keys are due, and the kernel's kTLS does not take any: Linux does from 6.14 on, in TLS 1.3.
        KeyUpdate = "key_update",
        /// An error of the gateway itself.
        Internal = "internal",
    }
}

reasons! {
    /// Why a server is down, and what a health check that failed has met.
    DownReason {
        /// No check of it is done yet: it is up until then, but down where its pool asks for a role.
        Unchecked = "unchecked",
        /// Connections to it have failed: it has a rest from them.
        Ejected = "ejected",
        /// Nobody listens there.
        Refused = "refused",
        /// There is no way to it.
        Unreachable = "unreachable",
        /// It did not answer in time.
        Timeout = "timeout",
        /// It reset the connection.
        Reset = "reset",
        /// It closed the connection without an answer.
        Closed = "closed",
        /// It answered with something else than its protocol has.
        BadAnswer = "bad_answer",
        /// A PostgreSQL or MySQL server without TLS, where the check asks for it.
        TlsRefused = "tls_refused",
        /// The TLS handshake failed, but not for its certificate.
        TlsFailed = "tls_failed",
        /// Its certificate has expired, or is not valid yet.
        CertificateExpired = "certificate_expired",
        /// Its certificate is for another name.
        CertificateName = "certificate_name",
        /// Its certificate leads to none of `ca`.
        UnknownCa = "unknown_ca",
        /// Its certificate is broken or badly signed, or it has not its key.
        CertificateInvalid = "certificate_invalid",
        /// It takes no commands yet, or any more: it loads its data, starts, recovers or stops.
        Loading = "loading",
        /// It works, but in another role than the pool asks for.
        WrongRole = "wrong_role",
        /// It does not take the login, or asks for one and the check has none.
        LoginFailed = "login_failed",
        /// It answered with an error.
        ServerError = "server_error",
        /// Its HTTP status is none of those expected.
        HttpStatus = "http_status",
        /// The gateway had no descriptor, port or memory for the check: it says nothing of the server.
        Resource = "resource",
    }
}

impl DownReason {
    /// The server itself has said so: it need not be asked again to be believed.
    pub const fn is_statement(self) -> bool {
        matches!(self, Self::Loading | Self::WrongRole)
    }
}

reasons! {
    /// Where a connection's bytes flow.
    Tier {
        /// tc programs forward each packet; the host's TCP stack is not in the path.
        Packet = "packet",
        /// A verdict program moves the bytes between the two sockets, in the kernel.
        Sockmap = "sockmap",
        /// Userspace relays the bytes, and the kernel encrypts and decrypts them: bulk on terminated routes, which begins in the
        /// copy tier.
        Ktls = "ktls",
        /// Userspace relays the bytes.
        Copy = "copy",
    }
}

reasons! {
    /// Why a connection did not get an earlier tier of the configured order.
    FallbackReason {
        /// The packet tier is not configured, or its programs cannot be loaded.
        PacketUnavailable = "packet_unavailable",
        /// The packet tier's programs were still being loaded after the start.
        PacketLoading = "packet_loading",
        /// No program has seen the client's SYN or the server's SYN-ACK with the addresses and numbers of our socket: it
        /// came by a device without a program, before the gateway's start, or through address translation or a SYN proxy.
        NoSynSeen = "no_syn_seen",
        /// IPv4 on one leg, IPv6 on the other.
        MixedFamily = "mixed_family",
        /// One end sends larger segments than the other accepts.
        MssMismatch = "mss_mismatch",
        /// Both ends may have sent more than the other one's window.
        WindowMismatch = "window_mismatch",
        /// TCP timestamps on one leg only.
        TimestampsMismatch = "timestamps_mismatch",
        /// A leg uses accurate ECN, whose counters cannot be translated.
        AccurateEcn = "accurate_ecn",
        /// The bytes that are still to be delivered are more than a handover allows.
        PrefixTooLarge = "prefix_too_large",
        /// The flow table has no room.
        FlowTableFull = "flow_table_full",
        /// The flow table has a connection with the same addresses and ports.
        FlowTaken = "flow_taken",
        /// None of `source_ports` was free toward the server.
        NoSourcePort = "no_source_port",
        /// The server sees the client's address (`source = "client"`), and no rule leads packets with the gateway's mark to its
        /// own sockets.
        NoMarkRule = "no_mark_rule",
        /// A device has no tc program, or a route encapsulates packets.
        DeviceUnsupported = "device_unsupported",
        /// The routing table has no route to an end, though its packets arrive.
        NoRoute = "no_route",
        /// An IPsec policy wants the packets of a leg encrypted, or drops them.
        IpsecPolicy = "ipsec_policy",
        /// A leg was closing before the connection was spliced.
        Closing = "closing",
        /// An end had sent urgent data (RFC 9293, section 3.8.5), which the gateway had not read.
        UrgentData = "urgent_data",
        /// The process was being taken over by its successor.
        TakenOver = "taken_over",
        /// The kernel refused a flow, or repair mode.
        PacketRefused = "packet_refused",
        /// The sockmap programs are not loaded.
        SockmapUnavailable = "sockmap_unavailable",
        /// This kernel's sockmap is known to lose or duplicate bytes.
        SockmapKernel = "sockmap_kernel",
        /// The sockmap is full.
        SockmapFull = "sockmap_full",
        /// The kernel refused the sockets.
        SockmapRefused = "sockmap_refused",
        /// The receiver was too slow: the connection went back to the copy tier, which has back-pressure.
        SockmapBackpressure = "sockmap_backpressure",
        /// The connection may go to kTLS later: its route ends TLS, and it has not moved a MiB yet. Or it never will, as it is
        /// passed through, or carries requests of HTTP.
        KtlsLater = "ktls_later",
        /// The kernel has no kTLS, or not with the session's cipher suite, or refused the socket.
        KtlsRefused = "ktls_refused",
        /// The route terminates TLS, so the bytes differ on the two legs.
        TlsTerminated = "tls_terminated",
        /// The gateway speaks TLS to the server and not to the client, so the bytes differ on the two legs.
        ServerTls = "server_tls",
        /// Its requests of HTTP are forwarded one by one.
        Http = "http",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_are_metric_names(names: &[&str]) {
        let mut seen = std::collections::HashSet::new();
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(seen.insert(name), "{name} twice");
        }
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        names_are_metric_names(&RejectReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&EchResult::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&OddName::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&CloseReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&HttpAnswer::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&TlsError::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&DownReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&FallbackReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&Tier::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
    }

    #[test]
    fn a_reason_is_its_own_index() {
        for (i, reason) in RejectReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
    }
}
