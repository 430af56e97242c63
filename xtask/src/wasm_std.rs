//! Finds or builds the standard library for `wasm32-unknown-unknown`, which guests need.
//!
//! On a normal machine rustup has it or fetches it. Where rustup cannot download, it is built once from Debian's
//! `rust-src` of exactly this compiler's version into a private sysroot below `target/wasm-std` (about a minute),
//! and a plain stable `cargo build` follows. Nothing of the toolchain itself is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use oplogue_tests::paths;

use crate::{console, steps};

const TARGET: &str = "wasm32-unknown-unknown";

/// Makes sure that guests can be built, and says how.
pub(crate) fn run() -> Result<()> {
    let ready = match ensure()? {
        None => format!("the toolchain has {TARGET}"),
        Some(sysroot) => format!("{TARGET} stands in {}", sysroot.display()),
    };
    console::say(&ready);
    Ok(())
}

/// The sysroot that has the target; `None` = the toolchain's own.
pub(crate) fn ensure() -> Result<Option<PathBuf>> {
    let toolchain = Toolchain::find()?;
    // `OPLOGUE_WASM_STD=source` takes the last road even where the first ones are open: to test it.
    let from_source = std::env::var_os("OPLOGUE_WASM_STD").is_some_and(|road| road == "source");
    if !from_source && toolchain.has_target() {
        return Ok(None);
    }
    let folder = paths::target().join("wasm-std");
    let sysroot = folder.join("sysroot");
    let stamp = folder.join("rustc-version");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == toolchain.version) {
        return Ok(Some(sysroot));
    }
    let rustup = || steps::output(Command::new("rustup").args(["target", "add", TARGET])).is_ok();
    if !from_source && rustup() && toolchain.has_target() {
        return Ok(None);
    }
    console::note(&format!("building the standard library for {TARGET} from rust-src {}", toolchain.version));
    let library = fetch_source(&folder, &toolchain.version)?;
    build(&toolchain, &library, &folder, &sysroot)?;
    std::fs::write(&stamp, &toolchain.version).with_context(|| format!("write {}", stamp.display()))?;
    Ok(Some(sysroot))
}

struct Toolchain {
    version: String,
    host: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let verbose = steps::output(Command::new("rustc").arg("-vV"))?;
        let line = |key: &str| {
            let found = verbose.lines().find_map(|line| line.strip_prefix(key));
            found.map(|value| value.trim().to_owned()).with_context(|| format!("rustc -vV names no {key}"))
        };
        let sysroot = steps::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        Ok(Self { version: line("release:")?, host: line("host:")?, sysroot: PathBuf::from(sysroot.trim()) })
    }

    fn has_target(&self) -> bool {
        let libraries = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        std::fs::read_dir(libraries).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libstd-")))
        })
    }
}

/// Fetches Debian's `rust-src` of `version` with a private apt state, from the machine's own mirror.
fn fetch_source(folder: &Path, version: &str) -> Result<PathBuf> {
    let apt = Apt::prepare(folder)?;
    steps::output(&mut apt.command("apt-get", &["update", "-qq"])).context(
        "no rustup download and no apt: run `rustup target add wasm32-unknown-unknown` where there is a network",
    )?;
    let known = steps::output(&mut apt.command("apt-cache", &["madison", "rust-src"]))?;
    let wanted = format!("{version}+");
    let package = known
        .lines()
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .find(|candidate| candidate.starts_with(&wanted))
        .with_context(|| format!("the mirror has no rust-src of version {version}"))?;
    steps::output(apt.command("apt-get", &["download", "-qq", &format!("rust-src={package}")]).current_dir(folder))?;
    let deb = find_in(folder, "rust-src_").context("apt-get download left no rust-src package")?;
    let source = folder.join("src");
    std::fs::create_dir_all(&source)?;
    steps::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&source))?;
    std::fs::remove_file(&deb)?;
    let release = find_in(&source.join("usr/src"), "rustc-").context("the rust-src package holds no library")?;
    Ok(release.join("library"))
}

/// apt with lists and caches of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn prepare(folder: &Path) -> Result<Self> {
        let apt = folder.join("apt");
        for part in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(apt.join(part))?;
        }
        std::fs::write(apt.join("status"), "")?;
        let list = apt.join("list");
        let mirror = mirror().context("no Debian mirror is configured below /etc/apt")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        std::fs::write(&list, format!("deb [signed-by={keys}] {mirror} trixie-backports main\n"))?;
        let path = |name: &str| apt.join(name).display().to_string();
        let options = [
            "APT::Sandbox::User=root".to_owned(),
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
        ];
        Ok(Self { options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect() })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).args(&self.options);
        command
    }
}

/// The Debian mirror that this machine uses already, out of all its package sources.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(std::fs::read_dir("/etc/apt/sources.list.d").ok()?.flatten().map(|entry| entry.path()));
    files.retain(|file| file.extension().is_some_and(|e| e == "list" || e == "sources"));
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).find_map(|text| {
        text.lines().find_map(|line| {
            let words = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
            let is_debian = |word: &&str| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian");
            words.split_whitespace().find(is_debian).map(str::to_owned)
        })
    })
}

fn build(toolchain: &Toolchain, library: &Path, folder: &Path, sysroot: &Path) -> Result<()> {
    let seed = folder.join("seed");
    std::fs::create_dir_all(seed.join("src"))?;
    std::fs::write(seed.join("src/lib.rs"), "")?;
    let manifest = "[package]\nname=\"seed\"\nversion=\"0.0.0\"\nedition=\"2021\"\n\
                    [workspace]\n[profile.release]\npanic=\"abort\"\n";
    std::fs::write(seed.join("Cargo.toml"), manifest)?;
    let mut cargo = Command::new(toolchain.sysroot.join("bin/cargo"));
    cargo
        .args(["build", "--quiet", "--release", "--target", TARGET, "-Zbuild-std=std,panic_abort"])
        .current_dir(&seed)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", library)
        .env("RUSTFLAGS", "-Cembed-bitcode=yes -Zforce-unstable-if-unmarked")
        .env("CARGO_TARGET_DIR", seed.join("target"))
        .env_remove("RUSTUP_TOOLCHAIN");
    steps::run(&mut cargo)?;
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    std::fs::create_dir_all(&libraries)?;
    for entry in std::fs::read_dir(seed.join("target").join(TARGET).join("release/deps"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libseed-") {
            std::fs::copy(entry.path(), libraries.join(name))?;
        }
    }
    let tools = sysroot.join("lib/rustlib").join(&toolchain.host);
    if !tools.exists() {
        link(&toolchain.sysroot.join("lib/rustlib").join(&toolchain.host), &tools)?;
    }
    std::fs::remove_dir_all(&seed)?;
    Ok(())
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).with_context(|| format!("link {}", to.display()))
}

#[cfg(not(unix))]
fn link(_from: &Path, _to: &Path) -> Result<()> {
    bail!("run `rustup target add {TARGET}`")
}

fn find_in(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("nothing below {} starts with {prefix}", folder.display())
}
