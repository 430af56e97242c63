//! The ordered end of a run: what was read is on the target when the process is gone, or it says what is not.
//!
//! The collector is asked to stop under load, with the target blocked, with changes that wait for their delay and with
//! the target gone. Its exit code, its last line and the stored position must tell the same story, and a restart must
//! end in equality. Nothing here is measured with a stop-watch.

use anyhow::{Context as _, Result};
use bson::{Document, Timestamp, doc};
use oplogue_tests::collector::{Collector, by_change_stream};

use super::rig::{PATIENCE, Rig, handed_over, until};

/// The fields of the last line of a clean end.
fn ended_at(collector: &Collector) -> Result<(String, String)> {
    let log = collector.log();
    let line = log.lines().rev().find(|line| line.contains("ended cleanly")).context("no clean end")?.to_owned();
    let (_, fields) = line.split_once("read=").with_context(|| line.clone())?;
    let (read, checkpoint) = fields.split_once("checkpoint=").with_context(|| line.clone())?;
    let plain = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    Ok((plain(read), plain(checkpoint)))
}

fn number(position: &str) -> Result<(u32, u32)> {
    let (secs, inc) = position.split_once('.').context("a position without a dot")?;
    Ok((secs.parse()?, inc.parse()?))
}

/// The position that a restart goes on from.
async fn stored(rig: &Rig) -> Result<Timestamp> {
    let documents = rig.source.client().database("mongoshake").collection::<Document>("ckpt_default");
    let found = documents.find_one(doc! { "_id": "test/source" }).await?.context("nothing is stored")?;
    Ok(found.get_document("position")?.get_timestamp("ts")?)
}

#[tokio::test]
async fn a_stop_under_load_ends_with_everything_that_was_read() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    // No checkpoint but the last one of each run.
    let mut collector = Collector::start(&rig.config()?.set("checkpoint.interval", 3_600_000))?;
    handed_over(&mut collector).await?;
    for round in 1..=4 {
        // Before its end what collides on unique indexes would be left, and the position before it.
        collector.wait_log_times("overlap is over", round, PATIENCE).await?;
        load.reach(load.totals().done + 600, PATIENCE).await?;
        let status = collector.terminate(PATIENCE).await?;
        anyhow::ensure!(status.code() == Some(0), "exit {status}:\n{}", collector.log_end());
        let (read, checkpoint) = ended_at(&collector)?;
        let Timestamp { time, increment } = stored(&rig).await?;
        let stored = format!("{time}.{increment}");
        assert_eq!(checkpoint, stored, "{}", collector.log_end());
        // A change stream shows a transaction event by event, and may be stopped in the middle of one: what was read of it
        // is written, and its end shows only by what comes behind it.
        let within = by_change_stream() && number(&read)? > number(&stored)?;
        assert!(read == stored || within, "what was read is stored:\n{}", collector.log_end());
        collector.run()?;
    }
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// Waits until the collector asks who else writes to the target.
async fn asks_who_writes(rig: &Rig, collector: &Collector) -> Result<()> {
    let admin = rig.target.client().database("admin");
    let question = doc! { "currentOp": 1, "appName": "oplogue", "command.aggregate": 1 };
    let asked = async || Ok(!admin.run_command(question.clone()).await?.get_array("inprog")?.is_empty());
    until(collector, "the question is on its way", asked).await
}

/// Before the copy, and before incremental: there is nothing to put in order yet, and nothing that went wrong.
#[tokio::test]
async fn a_stop_before_anything_is_under_way_is_clean() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(10).await?;
    let unanswered =
        doc! { "failCommands": ["aggregate"], "blockConnection": true, "blockTimeMS": 6_000, "appName": "oplogue" };
    rig.target.fail_command("alwaysOn", unanswered.clone()).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    for follows in [false, true] {
        asks_who_writes(&rig, &collector).await?;
        let status = collector.terminate(PATIENCE).await?;
        anyhow::ensure!(status.code() == Some(0), "follows: {follows}, exit {status}:\n{}", collector.log_end());
        rig.target.heal_commands().await?;
        if !follows {
            collector.run()?;
            handed_over(&mut collector).await?;
            rig.comparison().wait("shop.c00", PATIENCE).await?;
            anyhow::ensure!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
            rig.target.fail_command("alwaysOn", unanswered.clone()).await?;
        }
        collector.run()?;
    }
    rig.finish(rig.comparison(), collector, &["an earlier run of this job"]).await
}

/// Makes every write of the collector stay without an answer for much longer than a shutdown may take here. The server
/// keeps at it even when its client is gone, and the next run waits for that.
async fn block_writes(rig: &Rig) -> Result<()> {
    let data = doc! {
        "failCommands": ["insert", "update", "delete", "commitTransaction"],
        "blockConnection": true, "blockTimeMS": 20_000, "appName": "oplogue",
    };
    rig.target.fail_command("alwaysOn", data).await
}

/// The value of a series without labels; 0 where there is none.
async fn metric(collector: &Collector, name: &str) -> Result<u64> {
    let page = collector.get("/metrics").await?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or_default())
}

/// Waits until a flush is on its way and everything before it is stored: a checkpoint that is still due may be stored by
/// a process that does not get to say so.
async fn busy(collector: &Collector) -> Result<()> {
    let writes = async || Ok(metric(collector, "oplogue_schedule_busy_lanes").await? > 0);
    until(collector, "a lane writes", writes).await?;
    until(collector, "the position before it is stored", async || {
        let page: serde_json::Value = serde_json::from_str(&collector.get("/repl").await?)?;
        Ok(page["lsn_ckpt"]["ts"] == page["lsn_ack"]["ts"])
    })
    .await
}

#[tokio::test]
async fn a_shutdown_that_takes_too_long_says_who_is_late_and_what_is_safe() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(10).await?;
    let mut collector =
        Collector::start(&rig.config()?.set("limits.shutdown_time", 6).set("checkpoint.interval", 500))?;
    handed_over(&mut collector).await?;
    rig.comparison().wait("shop.c00", PATIENCE).await?;
    block_writes(&rig).await?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": "blocked" }).await?;
    busy(&collector).await?;
    let status = collector.terminate(PATIENCE).await?;
    rig.target.heal_commands().await?;
    anyhow::ensure!(status.code() == Some(3), "exit {status}:\n{}", collector.log_end());
    let log = collector.log();
    let last = log.lines().last().context("no log")?;
    let Timestamp { time, increment } = stored(&rig).await?;
    let safe = format!("Timestamp({time}, {increment})");
    anyhow::ensure!(last.contains("waiting for writes on 1 lanes") && last.contains(&safe), "{safe} is safe:\n{last}");
    anyhow::ensure!(log.contains("still waiting"), "nobody was named before the deadline:\n{log}");
    collector.run()?;
    rig.finish(rig.comparison(), collector, &["still waiting", "deadline passed", "an earlier run of this job"]).await
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_says_what_is_safe() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(10).await?;
    let mut collector = Collector::start(&rig.config()?.set("checkpoint.interval", 500))?;
    handed_over(&mut collector).await?;
    rig.comparison().wait("shop.c00", PATIENCE).await?;
    block_writes(&rig).await?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": "blocked" }).await?;
    busy(&collector).await?;
    collector.signal("TERM")?;
    collector.wait_log("shutting down in order", PATIENCE).await?;
    let status = collector.terminate(PATIENCE).await?;
    rig.target.heal_commands().await?;
    anyhow::ensure!(status.code() == Some(3), "exit {status}:\n{}", collector.log_end());
    let Timestamp { time, increment } = stored(&rig).await?;
    let log = collector.log();
    let last = log.lines().last().context("no log")?;
    anyhow::ensure!(last.contains(&format!("Timestamp({time}, {increment})")), "{last}");
    collector.run()?;
    rig.finish(rig.comparison(), collector, &["a second signal", "an earlier run of this job"]).await
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_delay() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(10).await?;
    let delayed = rig.config()?.set("incr_sync.target_delay", 86_400);
    let mut collector = Collector::start(&delayed)?;
    handed_over(&mut collector).await?;
    let shop = rig.source.client().database("shop").collection("c00");
    shop.insert_one(doc! { "_id": "early" }).await?;
    let delayed = async || Ok(metric(&collector, "oplogue_plugin_delayed_changes_total").await? > 0);
    until(&collector, "a delay", delayed).await?;
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(0), "exit {status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("left to the next start"), "{}", collector.log_end());
    let target = rig.target.client().database("shop").collection::<Document>("c00");
    assert_eq!(target.find_one(doc! { "_id": "early" }).await?, None, "a shutdown shortens no delay");
    let collector = Collector::start(&rig.config()?)?;
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn a_shutdown_that_loses_its_target_is_not_called_clean() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.fill(10).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    rig.comparison().wait("shop.c00", PATIENCE).await?;
    rig.target.kill(0)?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": "unwritten" }).await?;
    collector.wait_log("going back to the last durable position", PATIENCE).await?;
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(3), "exit {status}:\n{}", collector.log_end());
    rig.target.restart(0).await?;
    collector.run()?;
    // A position that was accepted just before the kill waits for a target that does not answer.
    let expected = [
        "going back to",
        "way of the shutdown",
        "is tried again",
        "deadline passed",
        "still waiting",
        "majority is late",
    ];
    rig.finish(rig.comparison(), collector, &expected).await
}
