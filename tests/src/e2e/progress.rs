//! What a person sees of the copy: a bar on a terminal, plain lines in a log.
//!
//! The real program runs on a pseudo terminal of the usual width, and what it draws is read back. The target answers each
//! insert late, so that the copy takes long enough to have a rate on any machine. Looks are not tested beyond this: the
//! facts are all there, on one line that fits, and no log line is torn.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use bson::doc;
use oplogue_tests::child::Guarded;
use oplogue_tests::collector::{self, Collector, PipelineConfig};

use super::rig::{PATIENCE, Rig};

const COLUMNS: usize = 80;

/// Runs a program on a pseudo terminal of 80 columns, copies what it writes to a file, and dies together with it.
const ON_A_TERMINAL: &str = r#"
import ctypes, fcntl, os, pty, struct, sys, termios
child, terminal = pty.fork()
if child == 0:
    ctypes.CDLL(None).prctl(1, 9)
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    try:
        data = os.read(terminal, 65536)
    except OSError:
        break
    if not data:
        break
    os.write(1, data)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

#[tokio::test]
async fn a_terminal_shows_a_bar_and_a_log_plain_lines() -> Result<()> {
    let rig = Rig::start().await?;
    let things = rig.source.client().database("shop").collection("things");
    things.insert_many((0..5_000).map(|n| doc! { "_id": n, "text": "x".repeat(400) })).await?;
    let slow = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 700 };
    rig.target.fail_command("alwaysOn", slow).await?;
    let config = rig.config()?.set("sync_mode", "full").set("full_sync.reader.document_batch_size", 250);
    let config = config.set("full_sync.reader.write_document_parallel", 1);

    let mut plain = Collector::start(&config)?;
    let status = plain.wait(PATIENCE).await?;
    anyhow::ensure!(status.success(), "exit {status}:\n{}", plain.log_end());
    let log = plain.log();
    anyhow::ensure!(!log.contains(['\u{1b}', '\r']), "control codes in a log:\n{}", log.escape_debug());
    let copying = log.lines().find(|line| line.contains("stage=full")).context("no line of the copy")?;
    let says = |line: &str| ["%", "documents/s", "B/s", "left"].iter().all(|fact| line.contains(fact));
    anyhow::ensure!(says(copying), "{copying}");

    let screen = on_a_terminal(&rig, &config.set("id", "terminal")).await?;
    let bars: Vec<String> = lines(&screen).into_iter().filter(|line| line.starts_with("full sync")).collect();
    let shown = format!("{}\n\n{}", bars.join("\n"), screen.escape_debug());
    let moving = bars.iter().any(|bar| bar.contains('%') && bar.contains("/s") && bar.contains("s left"));
    anyhow::ensure!(moving, "no share, rate and time left on one line:\n{shown}");
    anyhow::ensure!(bars.last().is_some_and(|bar| bar.contains("100")), "the last bar is not whole:\n{shown}");
    let torn = lines(&screen).into_iter().find(|line| {
        let bar = line.starts_with("full sync");
        (bar && line.chars().count() > COLUMNS) || !(bar || line.is_empty() || line.starts_with("[20"))
    });
    anyhow::ensure!(torn.is_none(), "a torn line {torn:?}:\n{shown}");
    rig.target.heal_commands().await?;
    let found = rig.comparison().run().await?;
    anyhow::ensure!(found.is_empty(), "{}", oplogue_tests::compare::report(&found));
    Ok(())
}

/// Everything that the program wrote to its terminal.
async fn on_a_terminal(rig: &Rig, config: &PipelineConfig) -> Result<String> {
    let dir = rig.source.dir();
    let (toml, screen) = (dir.join("terminal.toml"), dir.join("screen"));
    std::fs::write(&toml, config.to_toml()?)?;
    let mut python = Command::new("python3");
    python.args(["-c", ON_A_TERMINAL]).arg(collector::program()?).args(["run", "-c"]).arg(&toml);
    python.current_dir(dir).env("TERM", "xterm-256color").stdout(Stdio::from(std::fs::File::create(&screen)?));
    let status = Guarded::spawn(&mut python)?.wait(PATIENCE).await?;
    let text = String::from_utf8_lossy(&std::fs::read(&screen)?).into_owned();
    anyhow::ensure!(status.success(), "exit {status}:\n{text}");
    Ok(text)
}

/// What stood on each line at some time: the output without its control codes.
fn lines(screen: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = screen.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            // Parameters, then one letter.
            while rest.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
        } else {
            text.push(if c == '\r' { '\n' } else { c });
        }
    }
    text.split('\n').map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}
