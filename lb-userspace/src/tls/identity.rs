//! Who a client is, by its certificate: the names in it, as operators write and read them. Pure.
//!
//! A subject is written as RFC 4514 has it, and as `openssl x509 -subject -nameopt RFC2253` does: printable ASCII, the last
//! part first. Alternative names are written as `openssl x509 -ext subjectAltName` does: `DNS:…`, `URI:…`, `email:…`;
//! addresses as `IP:…`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::{Allowed, San};
use rustls::pki_types::CertificateDer;
use std::fmt::Write as _;
use std::net::IpAddr;
use x509_parser::asn1_rs::ToDer as _;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Characters of a name that are shown.
const SHOWN: usize = 256;

/// As [`known_as`], of a certificate that is not parsed.
pub(crate) fn client_name(certificate: &CertificateDer<'_>, allowed: &Allowed) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    known_as(&certificate, allowed)
}

/// Whether a certificate has this alternative name.
pub(super) fn has_san(certificate: &CertificateDer<'_>, san: &San) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    // An extension that cannot be read has no names.
    let sans = certificate.subject_alternative_name().ok().flatten();
    sans.iter().flat_map(|sans| &sans.value.general_names).any(|name| san.covers(name))
}

/// The name by which a certificate's holder is let in: of those that are allowed the first that it has. Where all are
/// allowed, its URI, for workloads have nothing else of their own (SPIFFE); else its subject; else another alternative
/// name; else its serial number. Printable and bounded. `None`: it has none of the names allowed.
fn known_as(certificate: &X509Certificate<'_>, allowed: &Allowed) -> Option<String> {
    let subject = subject(certificate.subject());
    // An extension that cannot be read has no names.
    let sans = certificate.subject_alternative_name().ok().flatten();
    let sans = || sans.iter().flat_map(|sans| &sans.value.general_names);
    let mut name = if allowed.subjects.is_empty() && allowed.sans.is_empty() {
        let uri = sans().find(|name| matches!(name, GeneralName::URI(_)));
        let own = || Some(subject).filter(|subject| !subject.is_empty());
        let other = || sans().find_map(shown);
        let serial = || format!("serial={}", certificate.raw_serial_as_string());
        uri.and_then(shown).or_else(own).or_else(other).unwrap_or_else(serial)
    } else if allowed.subjects.iter().any(|allowed| **allowed == subject) {
        subject
    } else {
        sans().find(|name| allowed.sans.iter().any(|allowed| allowed.covers(name))).and_then(shown)?
    };
    // What is written is ASCII.
    name.truncate(SHOWN);
    Some(name)
}

impl San {
    fn covers(&self, name: &GeneralName<'_>) -> bool {
        match (self, name) {
            (San::Dns(exact), GeneralName::DNSName(name)) => bare(name).eq_ignore_ascii_case(exact),
            (San::DnsBelow(parent), GeneralName::DNSName(name)) => {
                let name = bare(name).to_ascii_lowercase();
                let labels = name.strip_suffix(&**parent).and_then(|rest| rest.strip_suffix('.'));
                labels.is_some_and(|labels| !labels.is_empty())
            }
            (San::Ip(IpAddr::V4(address)), GeneralName::IPAddress(bytes)) => address.octets() == **bytes,
            (San::Ip(IpAddr::V6(address)), GeneralName::IPAddress(bytes)) => address.octets() == **bytes,
            (San::Uri(exact), GeneralName::URI(name)) => **exact == **name,
            (San::UriBelow(begin), GeneralName::URI(name)) => {
                name.strip_prefix(&**begin).is_some_and(|rest| !rest.is_empty())
            }
            (San::Email(mailbox), GeneralName::RFC822Name(name)) => {
                match (mailbox.rsplit_once('@'), name.rsplit_once('@')) {
                    (Some((user, domain)), Some((other, theirs))) => {
                        user == other && domain.eq_ignore_ascii_case(theirs)
                    }
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

fn bare(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// With its kind; `None` for kinds that are not written.
fn shown(name: &GeneralName<'_>) -> Option<String> {
    let (kind, name) = match name {
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()?;
            return Some(format!("IP:{address}"));
        }
        GeneralName::DNSName(name) => ("DNS", name),
        GeneralName::URI(name) => ("URI", name),
        GeneralName::RFC822Name(name) => ("email", name),
        _ => return None,
    };
    Some(format!("{kind}:{}", name.as_bytes().escape_ascii()))
}

/// RFC 4514, section 2.1: the parts in reverse, and `+` between the attributes of one.
fn subject(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for part in name.iter_rdn().collect::<Vec<_>>().into_iter().rev() {
        for (number, attribute) in part.iter().collect::<Vec<_>>().into_iter().rev().enumerate() {
            if !text.is_empty() {
                text.push(if number == 0 { ',' } else { '+' });
            }
            write_attribute(attribute, &mut text);
        }
    }
    text
}

/// The short names that RFC 4514, section 3, has, and those that OpenSSL adds.
const ATTRIBUTES: [(&str, &str); 14] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, text: &mut String) {
    let kind = attribute.attr_type().to_id_string();
    let known = ATTRIBUTES.iter().find(|(id, _)| *id == kind).map(|(_, name)| *name);
    text.push_str(known.unwrap_or(&kind));
    text.push('=');
    match (known, attribute.as_str()) {
        (Some(_), Ok(value)) => write_value(value, text),
        _ => {
            text.push('#');
            let der = attribute.attr_value().to_der_vec().unwrap_or_default();
            der.iter().for_each(|byte| _ = write!(text, "{byte:02X}"));
        }
    }
}

/// RFC 4514, section 2.4; what is not printable ASCII as pairs of hexadecimal digits.
fn write_value(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b' ' if at == 0 || at == last => text.push_str("\\ "),
            b'#' if at == 0 => text.push_str("\\#"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => _ = write!(text, "\\{byte:02X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    /// A certificate of these parts of a subject and these alternative names.
    fn certificate(subject: &[(DnType, &str)], sans: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), DnValue::Utf8String((*value).into()));
        }
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn email(text: &str) -> SanType {
        SanType::Rfc822Name(text.try_into().unwrap())
    }

    fn anybody(certificate: &CertificateDer<'_>) -> String {
        client_name(certificate, &Allowed::default()).unwrap()
    }

    #[test]
    fn a_subject_is_written_as_rfc_4514_has_it() {
        use DnType::{CommonName, CountryName, OrganizationName, OrganizationalUnitName};
        let name = |parts: &[(DnType, &str)]| anybody(&certificate(parts, vec![]));
        assert_eq!(
            name(&[(CountryName, "DE"), (OrganizationName, "Example, Inc."), (CommonName, "app1")]),
            "CN=app1,O=Example\\, Inc.,C=DE"
        );
        assert_eq!(name(&[(CommonName, " #a+b\"c\\<d>;  ")]), "CN=\\ #a\\+b\\\"c\\\\\\<d\\>\\; \\ ");
        assert_eq!(name(&[(CommonName, "#a"), (OrganizationalUnitName, "ü\n")]), "OU=\\C3\\BC\\0A,CN=\\#a");
        assert_eq!(name(&[(DnType::CustomDnType(vec![1, 2, 3, 4]), "a")]), "1.2.3.4=#0C0161");
        assert_eq!(name(&[(CommonName, "")]), "CN=");
    }

    #[test]
    fn without_a_list_the_most_telling_name_is_shown() {
        let subject = [(DnType::CommonName, "app1")];
        assert_eq!(
            anybody(&certificate(&subject, vec![dns("a.example"), uri("spiffe://a/b")])),
            "URI:spiffe://a/b"
        );
        assert_eq!(anybody(&certificate(&subject, vec![dns("a.example")])), "CN=app1");
        assert_eq!(anybody(&certificate(&[], vec![email("a@b.example")])), "email:a@b.example");
        assert!(anybody(&certificate(&[], vec![])).starts_with("serial="));
        assert_eq!(anybody(&certificate(&[], vec![uri("a:\"\n")])), "URI:a:\\\"\\n");
        assert_eq!(anybody(&certificate(&[(DnType::CommonName, &"a".repeat(5000))], vec![])).len(), SHOWN);
    }

    #[test]
    fn one_name_of_the_list_is_enough_and_is_shown() {
        let app = certificate(
            &[(DnType::CommonName, "app1")],
            vec![
                dns("a.example.com"),
                uri("spiffe://a/b"),
                email("Ops@Example.com"),
                SanType::IpAddress([10, 0, 0, 1].into()),
                SanType::IpAddress(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])),
            ],
        );
        let by = |subjects: &[&str], sans: &[San]| {
            let subjects = subjects.iter().map(|subject| (*subject).into()).collect();
            client_name(&app, &Allowed { subjects, sans: sans.to_vec() })
        };
        let exact = |name: &str| San::Dns(name.into());
        let below = |name: &str| San::DnsBelow(name.into());
        assert_eq!(by(&["CN=other", "CN=app1"], &[]).as_deref(), Some("CN=app1"));
        for (san, shown) in [
            (exact("a.example.com"), "DNS:a.example.com"),
            (below("example.com"), "DNS:a.example.com"),
            (below("com"), "DNS:a.example.com"),
            (San::Uri("spiffe://a/b".into()), "URI:spiffe://a/b"),
            (San::UriBelow("spiffe://a/".into()), "URI:spiffe://a/b"),
            (San::Email("Ops@example.com".into()), "email:Ops@Example.com"),
            (San::Ip([10, 0, 0, 1].into()), "IP:10.0.0.1"),
            (San::Ip([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()), "IP:fd00::1"),
        ] {
            assert_eq!(by(&["CN=other"], std::slice::from_ref(&san)).as_deref(), Some(shown), "{san:?}");
        }
        for san in [
            exact("example.com"),
            exact("b.example.com"),
            below("a.example.com"),
            below("ample.com"),
            San::Uri("spiffe://a/".into()),
            San::Uri("spiffe://a/B".into()),
            San::UriBelow("spiffe://a/b".into()),
            San::UriBelow("spiffe://a/c/".into()),
            San::Email("ops@example.com".into()),
            San::Ip([10, 0, 0, 2].into()),
            // Of another kind.
            San::Uri("a.example.com".into()),
        ] {
            assert_eq!(by(&["CN=app1,O=x"], std::slice::from_ref(&san)), None, "{san:?}");
        }
        assert_eq!(by(&["app1"], &[]), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_name() {
        assert_eq!(client_name(&CertificateDer::from(&b"\x30\x00"[..]), &Allowed::default()), None);
    }
}
