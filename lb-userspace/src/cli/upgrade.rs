//! `snisplice reload --upgrade`: a service manager's way to a new version. The manager starts the successor with the privileges
//! that a running gateway has dropped, waits until it serves, and is told by the old process which one is the main process now
//! (MAINPID of sd_notify(3)).

use anyhow::Context as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// Whether this program is another file than that which the process runs.
pub(super) fn is_new(process: i32) -> anyhow::Result<bool> {
    let file = |process: &str| -> anyhow::Result<_> {
        let path = format!("/proc/{process}/exe");
        let file = fs::metadata(&path).with_context(|| format!("cannot look at {path}"))?;
        Ok((file.dev(), file.ino()))
    };
    Ok(file("self")? != file(&process.to_string())?)
}

/// Runs a gateway in a process of its own, in which this returns when that has ended. In the process that calls this it returns
/// when the other serves, or has ended with this exit code. `serve` is given what it is to call when it serves. To be called
/// before the process has a second thread.
pub(super) fn in_background<E: From<anyhow::Error>>(
    serve: impl FnOnce(Box<dyn FnOnce()>) -> Result<(), E>,
) -> Result<Option<u8>, E> {
    const FAILED: &str = "cannot start a process";
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(FAILED)?;
    // SAFETY: this process has one thread, so that nothing it shares with others is left locked in the child.
    match unsafe { libc::fork() } {
        -1 => Err(anyhow::Error::new(io::Error::last_os_error()).context(FAILED).into()),
        0 => {
            drop(told);
            // It outlives the terminal or the control process from which this was started.
            let _ = rustix::process::setsid();
            serve(Box::new(move || _ = File::from(tell).write_all(b"1"))).map(|()| None)
        }
        child => {
            drop(tell);
            Ok(failure(child, told)?)
        }
    }
}

/// Waits until the child serves (`None`) or ends.
fn failure(child: i32, told: OwnedFd) -> anyhow::Result<Option<u8>> {
    if File::from(told).read(&mut [0]).is_ok_and(|read| read == 1) {
        return Ok(None);
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error().into());
    }
    let code = ExitStatus::from_raw(status).code().and_then(|code| u8::try_from(code).ok());
    // Killed, or ended before it has served.
    Ok(Some(code.filter(|code| *code != 0).unwrap_or(1)))
}
