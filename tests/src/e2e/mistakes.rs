//! Mistakes that everybody makes once: wrong files, wrong addresses, wrong passwords, wrong servers.
//!
//! Each of them ends the program with one clear sentence (what, where, what to do) and the exit code of its kind, before
//! anything was written. The sentences are the interface here, so their parts are tested. Nothing runs on after a mistake.

use std::process::Command;

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use oplogue_tests::child::Guarded;
use oplogue_tests::collector::{self, PipelineConfig};
use oplogue_tests::paths::{self, Scratch};
use oplogue_tests::servers::{DEFAULT_VERSION, User, connect, free_port};

use super::rig::{PATIENCE, Rig};

const FAULT: i32 = 1;
const CONFIGURATION: i32 = 2;

/// Runs `oplogue run -c FILE` in a directory of its own; the exit code and everything that was said.
async fn run(dir: &Scratch, file: &str) -> Result<(i32, String)> {
    let said = dir.path().join("said");
    let out = std::fs::File::create(&said)?;
    let mut command = Command::new(collector::program()?);
    command.args(["run", "-c", file]).current_dir(dir.path()).stdout(out.try_clone()?).stderr(out);
    let status = Guarded::spawn(&mut command)?.wait(PATIENCE).await?;
    let text = std::fs::read_to_string(&said)?;
    Ok((status.code().context("it was killed")?, text))
}

/// Runs a configuration that must fail: with this code, in one error line that has all the parts, and no password.
async fn fails(config: &PipelineConfig, code: i32, parts: &[&str]) -> Result<()> {
    let dir = Scratch::new("mistake")?;
    std::fs::write(dir.path().join("collector.toml"), config.to_toml()?)?;
    let (found, said) = run(&dir, "collector.toml").await?;
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("[ERROR]")).collect();
    anyhow::ensure!(found == code, "exit {found} instead of {code}:\n{said}");
    let [error] = errors.as_slice() else { anyhow::bail!("{} errors instead of one:\n{said}", errors.len()) };
    for part in parts {
        anyhow::ensure!(error.contains(part), "{part:?} is not in: {error}");
    }
    anyhow::ensure!(!said.contains("-password"), "a password is shown:\n{said}");
    Ok(())
}

#[tokio::test]
async fn servers_that_are_not_what_they_should_be() -> Result<()> {
    let rig = Rig::start().await?;
    let things = rig.target.client().database("shop").collection::<Document>("things");
    things.insert_one(doc! { "_id": "it was here before" }).await?;
    rig.source.client().database("shop").collection("things").insert_one(doc! { "_id": 1 }).await?;
    let config = rig.config()?;
    let nobody = format!("mongodb://127.0.0.1:{}/?replicaSet=rs&serverSelectionTimeoutMS=1500", free_port()?);
    let port = nobody.split(['/', ':']).nth(4).unwrap_or_default().to_owned();

    fails(&config.clone().set("mongo_urls", nobody.as_str()), FAULT, &["Source", &port, "start again"]).await?;
    fails(&config.clone().set("tunnel.address", nobody.as_str()), FAULT, &["Sink", &port, "start again"]).await?;
    let wrong = |uri: String| uri.replace("-password", "-pa55word-password");
    let source = wrong(rig.source.uri_as_user());
    let login = ["Unauthorized", "Authentication failed", "password"];
    fails(&config.clone().set("mongo_urls", source), FAULT, &[&login[..], &["Source"]].concat()).await?;
    let target = wrong(rig.target.uri_as_user());
    fails(&config.clone().set("tunnel.address", target), FAULT, &[&login[..], &["Sink"]].concat()).await?;

    let other_set =
        rig.source.uri_as_user().replace("replicaSet=source", "replicaSet=other&serverSelectionTimeoutMS=1500");
    fails(&config.clone().set("mongo_urls", other_set), FAULT, &["Source", "start again"]).await?;
    let itself = ["the source itself", "tunnel.address", "replica set source"];
    // Under another name, or `oplogue check` would know.
    let alias = rig.source.uri().replace("127.0.0.1", "localhost");
    fails(&config.clone().set("tunnel.address", alias), CONFIGURATION, &itself).await?;

    create_user(&rig.target.uri(), &User::new("reader", "reader-password", &[("readAnyDatabase", "admin")])).await?;
    let reader = rig.target.uri_as("reader", "reader-password");
    let lacks = ["Sink", "lacks the privilege `insert`", "readWriteAnyDatabase"];
    fails(&config.clone().set("tunnel.address", reader), FAULT, &lacks).await?;
    create_user(&rig.source.uri(), &User::new("no_oplog", "no-oplog-password", &[("readAnyDatabase", "admin")]))
        .await?;
    let no_oplog = rig.source.uri_as("no_oplog", "no-oplog-password");
    let lacks = ["Source", "lacks the privilege `find` on local.oplog.rs", "role `read` on `local`"];
    let by_oplog = config.clone().by_oplog_only("a change stream needs no right to read local");
    fails(&by_oplog.set("mongo_urls", no_oplog), FAULT, &lacks).await?;

    let (lone, _server) = lone_server().await?;
    fails(&config.clone().set("mongo_urls", lone.as_str()), FAULT, &["Source", "no member of a replica set"]).await?;

    let left = things.find_one(doc! { "_id": "it was here before" }).await?;
    anyhow::ensure!(left.is_some(), "a run that failed at its start has dropped a collection");
    Ok(())
}

#[tokio::test]
async fn files_that_are_no_configuration() -> Result<()> {
    let dir = Scratch::new("mistake")?;
    std::fs::create_dir(dir.path().join("folder"))?;
    std::fs::write(dir.path().join("empty.toml"), "")?;
    std::fs::write(dir.path().join("binary.toml"), [0x7f, b'E', b'L', b'F', 0xff, 0, 1])?;
    std::fs::write(
        dir.path().join("no-scheme.toml"),
        "mongo_urls = \"127.0.0.1:27017\"\ntunnel.address = \"mongodb://a\"\n",
    )?;
    for (file, parts) in [
        ("absent.toml", &["absent.toml", "No such file"][..]),
        ("folder", &["folder", "directory"]),
        ("empty.toml", &["empty.toml", "mongo_urls", "tunnel.address"]),
        ("binary.toml", &["binary.toml", "UTF-8"]),
        ("no-scheme.toml", &["no-scheme.toml", "mongo_urls", "mongodb://"]),
    ] {
        let (code, said) = run(&dir, file).await?;
        anyhow::ensure!(code == CONFIGURATION, "{file}: exit {code}:\n{said}");
        for part in parts {
            anyhow::ensure!(said.contains(part), "{file}: {part:?} is not in:\n{said}");
        }
    }
    Ok(())
}

async fn create_user(uri: &str, user: &User) -> Result<()> {
    let roles: Vec<_> = user.roles.iter().map(|(role, db)| doc! { "role": role, "db": db }).collect();
    let command = doc! { "createUser": &user.name, "pwd": &user.password, "roles": roles };
    connect(uri).await?.database("admin").run_command(command).await?;
    Ok(())
}

/// A server outside of any replica set.
async fn lone_server() -> Result<(String, (Guarded, Scratch))> {
    let dir = Scratch::new("lone")?;
    let port = free_port()?.to_string();
    let mut command = Command::new(paths::server(DEFAULT_VERSION).join("mongod"));
    command.args(["--port", &port, "--bind_ip", "127.0.0.1", "--nounixsocket", "--dbpath"]).arg(dir.path());
    command.arg("--logpath").arg(dir.path().join("mongod.log"));
    let server = Guarded::spawn(&mut command)?;
    let uri = format!("mongodb://127.0.0.1:{port}");
    // The first command waits until it listens.
    connect(&uri).await?.database("admin").run_command(doc! { "ping": 1 }).await.context("start a lone server")?;
    Ok((uri, (server, dir)))
}
