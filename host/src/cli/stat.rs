//! `oplogue stat`: the table that users of `mongoshake-stat` know, with rates that are rates.
//!
//! It asks `/repl` of a running job and prints one row a second. MongoShake's script showed the difference of every
//! number, so that `tps` was the change of the rate; here only counters become rates, over the time that really passed.
//! It works against MongoShake's own port too, since both answer the same JSON.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Exit, complain, print};
use crate::monitor::repl::Repl;

/// Head lines are repeated after this many rows.
const ROWS_A_HEAD: u64 = 20;
const ANSWER_TIME: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub struct StatArgs {
    /// Port of the job's status server.
    #[arg(long, default_value_t = 9100)]
    port: u16,
    /// Host of the job's status server.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Seconds between rows.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Rows to print; 0 = until interrupted.
    #[arg(long, default_value_t = 0)]
    count: u64,
}

/// Prints rows until the count is reached or the job does not answer.
pub(super) fn run(args: &StatArgs) -> Exit {
    let result =
        super::small_runtime().map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(poll(args)));
    match result {
        Ok(()) => Exit::Clean,
        Err(text) => {
            complain(&text);
            Exit::Fault
        }
    }
}

async fn poll(args: &StatArgs) -> Result<(), String> {
    let mut before: Option<(Instant, Repl)> = None;
    let mut rows = 0;
    loop {
        let answer = fetch(&args.host, args.port, "/repl").await?;
        let now: Repl = serde_json::from_str(&answer).map_err(|e| format!("/repl answered something else: {e}"))?;
        let at = Instant::now();
        if let Some((then, before)) = &before {
            if rows % ROWS_A_HEAD == 0 {
                print(&row(&HEAD.map(str::to_owned)));
            }
            print(&row(&cells(before, &now, at.duration_since(*then))));
            rows += 1;
        }
        before = Some((at, now));
        if args.count > 0 && rows >= args.count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

const HEAD: [&str; 12] = [
    "log_size_avg",
    "log_size_max",
    "logs_get/sec",
    "logs_repl/sec",
    "logs_success/sec",
    "lsn.time",
    "lsn_ack.time",
    "lsn_ckpt.time",
    "now.time",
    "replset",
    "tps",
    "lag",
];

fn cells(before: &Repl, now: &Repl, elapsed: Duration) -> [String; 12] {
    // A counter that went back belongs to a process that was started again: its rate begins at its new value.
    let rate = |then: u64, now: u64| {
        let difference = if now >= then { now - then } else { now };
        format!("{:.0}", difference as f64 / elapsed.as_secs_f64().max(0.001))
    };
    [
        now.log_size_avg.clone(),
        now.log_size_max.clone(),
        rate(before.logs_get, now.logs_get),
        rate(before.logs_repl, now.logs_repl),
        rate(before.logs_success, now.logs_success),
        now.lsn.time.clone(),
        now.lsn_ack.time.clone(),
        now.lsn_ckpt.time.clone(),
        now.now.time.clone(),
        now.replset.clone(),
        now.tps.to_string(),
        format!("{:.1}s", now.lag_seconds),
    ]
}

fn row(cells: &[String; 12]) -> String {
    let mut row = String::from("|");
    for (cell, head) in cells.iter().zip(HEAD) {
        let width = if head.contains(".time") { 19 } else { head.len().max(8) };
        row.push_str(&format!(" {cell:>width$} |"));
    }
    row
}

/// One GET, in HTTP/1.0: the answer ends with the connection.
pub(crate) async fn fetch(host: &str, port: u16, path: &str) -> Result<String, String> {
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match tokio::time::timeout(ANSWER_TIME, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("no job answers on {host}:{port}: {error}")),
        Err(_) => return Err(format!("{host}:{port} did not answer within {} s", ANSWER_TIME.as_secs())),
    };
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        code => Err(format!("{path} answered {}", code.unwrap_or("nothing"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of MongoShake's 2.8 shape: without the fields that are ours.
    fn answer(get: u64, success: u64, tps: u64) -> Repl {
        let time = r#"{"unix":1707334793,"time":"2024-02-07 19:39:53","ts":"7332947099257929731"}"#;
        let text = format!(
            r#"{{"who":"job","tag":"","replset":"rs0","logs_get":{get},"logs_repl":{success},"logs_success":{success},
            "tps":{tps},"lsn":{time},"lsn_ack":{time},"lsn_ckpt":{time},
            "now":{{"unix":1707334864,"time":"2024-02-07 19:41:04"}},"log_size_avg":"503.00B","log_size_max":"12.29KB"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn counters_become_rates_and_a_rate_stays_one() {
        let cells = cells(&answer(100, 50, 700), &answer(700, 450, 710), Duration::from_secs(2));
        assert_eq!((cells[2].as_str(), cells[4].as_str(), cells[10].as_str()), ("300", "200", "710"));
        assert_eq!(cells[0], "503.00B");
    }

    #[test]
    fn a_restarted_job_has_no_negative_rate() {
        assert_eq!(cells(&answer(1000, 0, 0), &answer(30, 0, 0), Duration::from_secs(1))[2], "30");
    }

    #[test]
    fn head_and_rows_line_up() {
        let head = row(&HEAD.map(str::to_owned));
        assert_eq!(head.len(), row(&cells(&answer(0, 0, 0), &answer(9, 9, 9), Duration::from_secs(1))).len());
    }
}
