//! Checks `health` of a pool: what its keys mean for each other.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::certificate::Certificates;
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::draft::{CheckKind, HealthDraft, HealthTlsDraft, PoolDraft};
use crate::config::health::{Check, Health, HealthTls, Login, Secret};
use crate::config::place::Place;
use crate::config::toml::CHECKS;

/// What of `health` fits together.
pub(super) fn check(
    draft: &HealthDraft,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<Arc<Health>> {
    let check = draft.check.given()?;
    reject_others_keys(draft, check.value, report);
    let default = Health::new(Check::Tcp);
    let interval = draft.interval.or(default.interval);
    if let Some(timeout) = draft.timeout.given()
        && timeout.value > interval
        && !draft.interval.is_invalid()
    {
        let interval = humantime::format_duration(interval);
        let error =
            Diagnostic::error(&timeout.place, format!("`timeout` is longer than `interval`, {interval}"));
        report
            .push(error.help("one check ends before the next begins: raise `interval`, or lower `timeout`"));
    }
    let tls = draft.tls.given().map(|tls| tls_of(&tls.value, certificates, report));
    let login = login(draft, certificates, report);
    let role = draft.role.get();
    let what = match check.value {
        CheckKind::Tcp => Check::Tcp,
        CheckKind::Tls => Check::Tls,
        CheckKind::Redis => {
            if let (Some(user), None) =
                (draft.user.given(), login.as_ref().and_then(|login| login.password.as_ref()))
                && draft.password_file.is_absent()
            {
                let error = Diagnostic::error(&user.place, "`user` without `password_file`");
                report.push_absence(error.help("add `password_file = \"FILE\"`, or take `user` out"));
            }
            Check::Redis { role, login }
        }
        CheckKind::Postgres => {
            for (key, span) in [
                ("role", draft.role.place()),
                ("password_file", draft.password_file.place()),
                ("database", draft.database.place()),
            ] {
                if let (Some(span), true) = (span, draft.user.is_absent()) {
                    let error =
                        Diagnostic::error(span, format!("`{key}` of a PostgreSQL check without `user`"));
                    report.push_absence(error.help(
                        "a server tells more only after a login: add `user = \"NAME\"`, a role that may log in and needs \
                         no other right",
                    ));
                }
            }
            Check::Postgres { role, login, database: draft.database.or("postgres".into()) }
        }
        CheckKind::Mysql => {
            if let (Some(file), true) = (draft.password_file.place(), draft.user.is_absent()) {
                let error = Diagnostic::error(file, "`password_file` of a MySQL check without `user`");
                report.push_absence(error.help("add `user = \"NAME\"`, an account that needs no right"));
            }
            Check::Mysql { login }
        }
        CheckKind::Http => {
            let status = draft.status.given().map(|list| list.value.iter());
            Check::Http {
                path: draft.path.or("/".into()),
                host: draft.host.get(),
                status: status.into_iter().flatten().map(|status| status.value).collect(),
            }
        }
    };
    Some(Arc::new(Health {
        check: what,
        interval,
        timeout: draft.timeout.or(default.timeout.min(interval)),
        rise: draft.rise.or(default.rise),
        fall: draft.fall.or(default.fall),
        port: draft.port.get(),
        tls: tls.or((check.value == CheckKind::Tls).then(HealthTls::default)),
    }))
}

/// A check by HTTP is none by HTTP/2.
pub(super) fn warn_of_http2(pool: &PoolDraft, report: &mut Report) {
    let (Some(health), Some(http2)) = (pool.health.given(), pool.http2.given()) else { return };
    let Some(check) = health.value.check.given() else { return };
    if http2.value && check.value == CheckKind::Http && health.value.port.is_absent() {
        let message = "this check asks in HTTP/1.1, and the pool's requests are HTTP/2";
        let warning = Diagnostic::warning(&check.place, message).related(&http2.place, "it says so here");
        report.push(warning.help(
            "servers that speak nothing but HTTP/2 fail it: make it `check = \"tcp\"` or `\"tls\"`, or ask at another `port`",
        ));
    }
}

/// A key, where it is given, and the checks that it belongs to.
type KeyOf<'a> = (&'static str, Option<&'a Place>, &'a [CheckKind]);

/// Keys that belong to another kind of check.
fn reject_others_keys(draft: &HealthDraft, check: CheckKind, report: &mut Report) {
    use CheckKind::{Http, Mysql, Postgres, Redis, Tls};
    let keys: [KeyOf<'_>; 8] = [
        ("role", draft.role.place(), &[Redis, Postgres]),
        ("user", draft.user.place(), &[Redis, Postgres, Mysql]),
        ("password_file", draft.password_file.place(), &[Redis, Postgres, Mysql]),
        ("database", draft.database.place(), &[Postgres]),
        ("path", draft.path.place(), &[Http]),
        ("host", draft.host.place(), &[Http]),
        ("status", draft.status.place(), &[Http]),
        ("tls", draft.tls.place(), &[Tls, Redis, Postgres, Mysql, Http]),
    ];
    let name =
        |check: &CheckKind| CHECKS.iter().find(|(_, known)| known == check).map_or("", |(name, _)| name);
    for (key, span, checks) in keys {
        if let Some(span) = span
            && !checks.contains(&check)
        {
            let error = Diagnostic::error(span, format!("a check by `{}` has no `{key}`", name(&check)));
            let with: Vec<_> = checks.iter().map(|check| format!("`check = \"{}\"`", name(check))).collect();
            report.push(error.help(format!("take it out; it goes with {}", with.join(" or "))));
        }
    }
}

fn tls_of(draft: &HealthTlsDraft, certificates: &mut Certificates<'_>, report: &mut Report) -> HealthTls {
    let ca = draft.ca.given().and_then(|path| match certificates.server_authorities(Some(&path.value)) {
        Ok(authorities) => Some(authorities),
        Err(problem) => {
            report.push(problem.at(&path.place));
            None
        }
    });
    HealthTls { ca, server_name: draft.server_name.get() }
}

fn login(draft: &HealthDraft, certificates: &mut Certificates<'_>, report: &mut Report) -> Option<Login> {
    let file = draft.password_file.given();
    if let (Some(file), Some(tls)) = (file, draft.tls.given())
        && tls.value.ca.is_absent()
    {
        let error = Diagnostic::error(&tls.place, "`tls` without `ca`, and a password to send")
            .related(&file.place, "the password");
        report.push_absence(error.help("whoever stands between could take it: add `ca = \"FILE\"` to `tls`"));
    }
    let password = file.and_then(|path| match certificates.line(&path.value, "password") {
        Ok(line) if line.contains(&0) || line.len() > MAX_PASSWORD => {
            report.push(
                Diagnostic::error(&path.place, "this password has a zero byte, or more than 1024 bytes")
                    .help("one line, with the password"),
            );
            None
        }
        Ok(line) => Some(Secret::new(&line)),
        Err(problem) => {
            report.push(problem.at(&path.place));
            None
        }
    });
    let user = draft.user.get();
    (user.is_some() || password.is_some()).then_some(Login { user, password })
}

/// Bytes of a password: PostgreSQL's own clients take no longer ones.
const MAX_PASSWORD: usize = 1024;
