//! Protocols that begin in clear text: what is said before TLS.

/// What client and server say to the gateway before TLS.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dialogue {
    /// As the configuration has it.
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
    /// What the client waits for, and then says; at last it only waits.
    pub(crate) client: &'static [[&'static [u8]; 2]],
    /// What the server says, and then waits for; at last it only says.
    pub(crate) server: &'static [[&'static [u8]; 2]],
}

pub(crate) const SMTP: Dialogue = Dialogue {
    protocol: "smtp",
    port: 25,
    client: &[[b" ESMTP\r\n", b"EHLO client\r\n"], [b"250 STARTTLS\r\n", b"STARTTLS\r\n"], [b"TLS\r\n", b""]],
    server: &[
        [b"220-server\r\n220 ESMTP\r\n", b"]\r\n"],
        [b"250-server\r\n250 STARTTLS\r\n", b"STARTTLS\r\n"],
        [b"220 go\r\n", b""],
    ],
};

pub(crate) const IMAP: Dialogue = Dialogue {
    protocol: "imap",
    port: 143,
    client: &[[b"snisplice\r\n", b"a STARTTLS\r\n"], [b"negotiation\r\n", b""]],
    server: &[[b"* OK server\r\n", b"1 STARTTLS\r\n"], [b"1 OK go\r\n", b""]],
};

pub(crate) const POP3: Dialogue = Dialogue {
    protocol: "pop3",
    port: 110,
    client: &[[b"snisplice\r\n", b"STLS\r\n"], [b"negotiation\r\n", b""]],
    server: &[[b"+OK server\r\n", b"STLS\r\n"], [b"+OK go\r\n", b""]],
};

const LDAP_REQUEST: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
const LDAP_SUCCESS: &[u8] = b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0";

pub(crate) const LDAP: Dialogue = Dialogue {
    protocol: "ldap",
    port: 389,
    client: &[[b"", LDAP_REQUEST], [LDAP_SUCCESS, b""]],
    server: &[[b"", LDAP_REQUEST], [LDAP_SUCCESS, b""]],
};

pub(crate) const XMPP: Dialogue = Dialogue {
    protocol: "xmpp",
    port: 5222,
    client: &[
        [b"", b"<stream:stream xmlns='jabber:client' to='app1.example.com'>"],
        [b"</stream:features>", b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"],
        [b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", b""],
    ],
    server: &[
        [b"", b" to='app1.example.com' version='1.0'>"],
        [
            b"<stream:features><starttls/></stream:features>",
            b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
        ],
        [b"<proceed/>", b""],
    ],
};
