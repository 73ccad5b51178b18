//! The closed sets of reasons. Each has exactly one metric name; a variant without one does not compile.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

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
        /// A PROXY header was due (the peer is in `trusted_proxies`) and none, or a broken one, came.
        ProxyHeaderMalformed = "proxy_header_malformed",
        /// The client closed before it sent a byte (a port scan, a TCP health check).
        ClosedBeforeData = "closed_before_data",
        /// The client closed, or reset, in the middle of its preamble or ClientHello.
        ClosedBeforeHello = "closed_before_hello",
        /// `hello_timeout` passed before the ClientHello was whole.
        HelloTimeout = "hello_timeout",
        /// The first bytes are not a TLS handshake record.
        NotTls = "not_tls",
        /// A TLS record or handshake message that contradicts itself.
        HelloMalformed = "hello_malformed",
        /// The ClientHello is longer than the bound (128 KiB), or its framing is.
        HelloTooLarge = "hello_too_large",
        /// The server_name extension holds several names or none (RFC 6066, section 3); or something that is no DNS
        /// host name, and the listener has no default route.
        SniInvalid = "sni_invalid",
        /// A PostgreSQL client asked for a session without TLS.
        PostgresCleartext = "postgres_cleartext",
        /// A PostgreSQL CancelRequest in clear text: it has no SNI, so it cannot be routed.
        PostgresCancelCleartext = "postgres_cancel_cleartext",
        /// Neither SSLRequest, GSSENCRequest, StartupMessage, CancelRequest nor TLS.
        PostgresMalformed = "postgres_malformed",
        /// Bytes stuffed behind an SSLRequest before it was answered (CVE-2021-23222).
        PostgresStuffed = "postgres_stuffed",
        /// No route covers this SNI.
        UnknownSni = "unknown_sni",
        /// The client sent no SNI, or an IP address, and the listener has no default route.
        NoSni = "no_sni",
        /// Routes cover the SNI, none of them covers the ALPN offered; or TLS without SSLRequest on a PostgreSQL
        /// listener does not offer `postgresql`.
        AlpnMismatch = "alpn_mismatch",
        /// The route's `max_connections` is reached.
        RouteFull = "route_full",
    }
}

reasons! {
    /// What clients send as a server name that is no DNS host name; only a default route takes it.
    OddName {
        /// An IP address, against RFC 6066, section 3; it is taken for no name.
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
        /// It was as old as the route's `max_age`.
        MaxAge = "max_age",
        /// No server of the pool is up, resolved and permitted.
        NoServer = "no_server",
        /// Every server tried refused or was unreachable.
        ConnectFailed = "connect_failed",
        /// The last server tried did not answer within `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// The server refused TLS in its PostgreSQL preamble, or answered it with something else.
        ServerPreamble = "server_preamble",
        /// The TLS handshake with the client failed (terminated routes).
        TlsHandshakeFailed = "tls_handshake_failed",
        /// A TLS record that cannot be decrypted, or a fatal alert, after the handshake.
        TlsError = "tls_error",
        /// The gateway stopped and the drain time was over.
        Shutdown = "shutdown",
        /// An operator ended it.
        Killed = "killed",
        /// A reload took its route away, whose `on_removal` says that it ends.
        RouteRemoved = "route_removed",
        /// The gateway ran out of a resource (descriptors, memory).
        Resource = "resource",
        /// An IPsec policy came that wants its packets encrypted: a connection of the packet tier cannot go on.
        IpsecPolicy = "ipsec_policy",
        /// The kernel lost or repeated a byte between the two sockets: both sides were reset.
        KernelFault = "kernel_fault",
    }
}

/// Why a client that spoke TLS got nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// It had no route.
    Rejected(RejectReason),
    /// It had one, but its handshake failed, or there was no server.
    Closed(CloseReason),
}

reasons! {
    /// Why TLS with a client failed on a terminated route: the cause of [`CloseReason::TlsHandshakeFailed`] and
    /// [`CloseReason::TlsError`]. What begins with `alert_` is what the client itself said.
    TlsError {
        /// The client offers neither TLS 1.2 nor TLS 1.3.
        NoSharedVersion = "no_shared_version",
        /// The client offers no cipher suite that the gateway has and the certificate's key can be used with.
        NoSharedSuite = "no_shared_suite",
        /// The client offers no group (curve) for the key exchange that the gateway has.
        NoSharedGroup = "no_shared_group",
        /// The client takes no signature that the certificate's key can make.
        NoSharedSignature = "no_shared_signature",
        /// The client lacks something else that TLS needs.
        Incompatible = "incompatible",
        /// The client showed no certificate, and `client_ca` asks for one.
        CertificateRequired = "certificate_required",
        /// The client's certificate leads to none of `client_ca`.
        UnknownCa = "unknown_ca",
        /// The client's certificate, or one that leads from it to `client_ca`, has expired.
        CertificateExpired = "certificate_expired",
        /// The client's certificate, or one that leads from it to `client_ca`, is not valid yet.
        CertificateNotYetValid = "certificate_not_yet_valid",
        /// The client's certificate is for other purposes: for servers only, or an authority's own.
        CertificatePurpose = "certificate_purpose",
        /// The client's certificate is X.509 version 1 or 2, and not itself in `client_ca`.
        CertificateVersion = "certificate_version",
        /// The client's certificate is broken or badly signed, or the client has not its key.
        CertificateInvalid = "certificate_invalid",
        /// The client does not know who signed the route's certificate.
        AlertUnknownCa = "alert_unknown_ca",
        /// To the client the route's certificate is bad: for another name, as many clients mean it.
        AlertBadCertificate = "alert_bad_certificate",
        /// The client cannot use a certificate of this kind.
        AlertUnsupportedCertificate = "alert_unsupported_certificate",
        /// To the client the route's certificate is revoked.
        AlertCertificateRevoked = "alert_certificate_revoked",
        /// To the client the route's certificate has expired.
        AlertCertificateExpired = "alert_certificate_expired",
        /// The client does not take the route's certificate, and does not say why.
        AlertCertificateUnknown = "alert_certificate_unknown",
        /// The client does not take what the gateway has chosen.
        AlertHandshakeFailure = "alert_handshake_failure",
        /// The client does not take the version that the gateway has chosen.
        AlertProtocolVersion = "alert_protocol_version",
        /// Any other alert of the client.
        AlertOther = "alert_other",
        /// The client closed the connection during the handshake.
        Closed = "closed",
        /// The client reset the connection during the handshake.
        Reset = "reset",
        /// The handshake was not done within `hello_timeout`.
        Timeout = "timeout",
        /// The client sent what TLS does not allow.
        ProtocolViolation = "protocol_violation",
        /// A record could not be decrypted: it was changed on its way, or never was TLS.
        Undecryptable = "undecryptable",
        /// A fault of the gateway.
        Internal = "internal",
    }
}

reasons! {
    /// Where a connection's bytes flow.
    Tier {
        /// tc programs forward each packet; the host's TCP stack is out of the path.
        Packet = "packet",
        /// A verdict program moves bytes between the two sockets inside the kernel.
        Sockmap = "sockmap",
        /// Userspace relays.
        Copy = "copy",
    }
}

reasons! {
    /// Why a connection did not get an earlier tier of the configured order.
    FallbackReason {
        /// This version, or this kernel, has no packet programs loaded.
        PacketUnavailable = "packet_unavailable",
        /// The packet programs were still being loaded, after the start.
        PacketLoading = "packet_loading",
        /// No program has seen the client's SYN or the server's SYN-ACK as this host's sockets know them: they came by
        /// a device without a program, from before the gateway's start, or through address translation or a SYN proxy.
        NoSynSeen = "no_syn_seen",
        /// IPv4 on one leg, IPv6 on the other.
        MixedFamily = "mixed_family",
        /// One leg sends larger segments than the other takes.
        MssMismatch = "mss_mismatch",
        /// Either end may have sent the other more than it has room for.
        WindowMismatch = "window_mismatch",
        /// TCP timestamps on one leg only.
        TimestampsMismatch = "timestamps_mismatch",
        /// A leg uses accurate ECN, whose counters belong to one connection.
        AccurateEcn = "accurate_ecn",
        /// There are more bytes under way than a handover carries.
        PrefixTooLarge = "prefix_too_large",
        /// The flow table has no room.
        FlowTableFull = "flow_table_full",
        /// The flow table has a connection of the same addresses and ports.
        FlowTaken = "flow_taken",
        /// No source port of ours toward the server was free.
        NoSourcePort = "no_source_port",
        /// A device that takes no tc program, or a route that wraps packets.
        DeviceUnsupported = "device_unsupported",
        /// The routing table has no way to an end, though its packets came.
        NoRoute = "no_route",
        /// An IPsec policy wants the packets of a leg encrypted, or would refuse them.
        IpsecPolicy = "ipsec_policy",
        /// A leg was at its end before the connection was spliced.
        Closing = "closing",
        /// The kernel refused.
        PacketRefused = "packet_refused",
        /// The sockmap programs are not loaded.
        SockmapUnavailable = "sockmap_unavailable",
        /// This kernel's sockmap is known to lose or duplicate bytes.
        SockmapKernel = "sockmap_kernel",
        /// The sockmap is full.
        SockmapFull = "sockmap_full",
        /// The kernel refused the sockets.
        SockmapRefused = "sockmap_refused",
        /// The receiver did not keep up: the connection went back to the copy tier to get back-pressure.
        SockmapBackpressure = "sockmap_backpressure",
        /// TLS ends here: the bytes differ on the two legs.
        TlsTerminated = "tls_terminated",
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
        names_are_metric_names(&OddName::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&CloseReason::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
        names_are_metric_names(&TlsError::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
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
