//! MySQL's server and client, for the tests. Debian's releases have MariaDB only; its unstable distribution has MySQL, for a C
//! library that is newer than a release's. So the packages are unpacked beside each other, with the libraries that they need,
//! and nothing is installed: the tests run them by the dynamic linker that came along.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    mirror,
    steps::{self, installed, quietly},
};

/// What is unpacked, with all that it depends on: about 70 MB to fetch, 400 MB on the disk.
const PACKAGES: [&str; 2] = ["mysql-server-core", "mysql-client-core"];

/// Unpacks MySQL into the target directory, unless it is there. Without it its tests are skipped, so a failure is said and
/// does not count.
pub(crate) fn ensure() {
    let home = steps::target_dir().join("mysql");
    if home.join("root/usr/sbin/mysqld").is_file() {
        return;
    }
    if let Err(error) = fetch(&home) {
        eprintln!("  MySQL is not there, and its tests will be skipped: {error:#}");
    }
}

fn fetch(home: &Path) -> Result<()> {
    if !installed("apt-get") || !installed("dpkg-deb") {
        anyhow::bail!("it is unpacked from Debian's packages");
    }
    // An apt of its own: neither the machine's list of packages nor its sources change.
    let apt = home.join("apt");
    for directory in
        ["etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"]
    {
        fs::create_dir_all(apt.join(directory))?;
    }
    fs::write(apt.join("var/lib/dpkg/status"), "")?;
    let keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(
        apt.join("etc/apt/sources.list"),
        format!("deb {keys} {} sid main\n", mirror::debian_mirror()),
    )?;
    let options = [
        format!("Dir \"{}\";", apt.display()),
        format!("Dir::State::status \"{}\";", apt.join("var/lib/dpkg/status").display()),
        // Nothing of this is installed, and the directory may be closed to apt's own user.
        "APT::Sandbox::User \"root\";".to_owned(),
        "Acquire::Languages \"none\";".to_owned(),
        // A mirror that lags behind is as good.
        "Acquire::Check-Valid-Until \"false\";".to_owned(),
    ];
    fs::write(apt.join("apt.conf"), options.join("\n"))?;
    let get = |action: &str| {
        let mut get = Command::new("apt-get");
        get.args(["-y", action])
            .env("APT_CONFIG", apt.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        get
    };
    quietly("the packages of Debian's unstable distribution", &mut get("update"))?;
    let mut download = get("install");
    download.args(["--no-install-recommends", "--download-only"]).args(PACKAGES);
    quietly("MySQL, for the tests", &mut download)?;

    let archives = apt.join("var/cache/apt/archives");
    let packages = fs::read_dir(&archives)?.flatten().map(|entry| entry.path());
    let packages: Vec<PathBuf> =
        packages.filter(|path| path.extension().is_some_and(|kind| kind == "deb")).collect();
    // Whole, or not at all.
    let unpacking = home.join("unpacking");
    let _ = fs::remove_dir_all(&unpacking);
    for package in packages {
        let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacking).status()?;
        anyhow::ensure!(status.success(), "cannot unpack {}", package.display());
    }
    fs::remove_dir_all(&apt)?;
    let _ = fs::remove_dir_all(home.join("root"));
    fs::rename(&unpacking, home.join("root")).context("cannot put it in its place")
}
