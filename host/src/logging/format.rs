//! The two forms of a log line.
//!
//! Text and JSON carry the same facts: time, level, message, fields of the event and of the spans around it. Control
//! characters are escaped, so that a value of a document can never forge a line.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::redact::redact;

/// `[2026/11/22 23:40:01 UTC] [INFO] text key=value`.
#[derive(Debug, Clone, Copy)]
pub struct Line;

/// `{"time":…,"level":…,"target":…,"message":…,"key":…}`.
#[derive(Debug, Clone, Copy)]
pub struct LineJson;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = TextFields::default();
        event.record(&mut text);
        let time = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y/%m/%d %H:%M:%S UTC");
        let mut line = format!("[{time}] [{}] {}{}", level(*event.metadata().level()), text.message, text.fields);
        for span in ctx.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                line.push(' ');
                push_escaped(&mut line, &fields.fields);
            }
        }
        writeln!(writer, "{}", redact(&line))
    }
}

impl<S, N> FormatEvent<S, N> for LineJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut json = JsonFields(Map::new());
        json.put("time", Value::String(jiff::Timestamp::now().to_string()));
        json.put("level", Value::String(level(*event.metadata().level()).to_owned()));
        json.put("target", Value::String(event.metadata().target().to_owned()));
        event.record(&mut json);
        // Redaction looks at values before quoting: an escaped quote must not end a password early.
        writeln!(writer, "{}", Value::Object(json.0))
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

#[derive(Default)]
struct TextFields {
    message: String,
    fields: String,
}

impl TextFields {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            push_escaped(&mut self.message, value);
            return;
        }
        self.fields.push(' ');
        self.fields.push_str(field.name());
        self.fields.push('=');
        push_escaped(&mut self.fields, value);
    }
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" && value.contains([' ', '"', '=']) {
            self.put(field, &format!("{value:?}"));
        } else {
            self.put(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

struct JsonFields(Map<String, Value>);

impl JsonFields {
    fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    fn text(&mut self, name: &str, value: &str) {
        self.put(name, Value::String(redact(value).into_owned()));
    }
}

impl Visit for JsonFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format!("{value:?}"));
    }
}

fn push_escaped(to: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            // Writing into a string cannot fail.
            let _never = write!(to, "{}", c.escape_default());
        } else {
            to.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Memory {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn logged(json: bool, act: impl FnOnce()) -> String {
        let memory = Memory::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(memory.clone());
        if json {
            let subscriber = tracing_subscriber::registry().with(layer.event_format(LineJson));
            tracing::subscriber::with_default(subscriber, act);
        } else {
            let subscriber = tracing_subscriber::registry().with(layer.event_format(Line));
            tracing::subscriber::with_default(subscriber, act);
        }
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_has_date_level_text_and_fields() {
        let line = logged(false, || tracing::info!(lanes = 8, mode = "a b", "pipeline started"));
        assert!(
            line.starts_with("[20") && line.contains(" UTC] [INFO] pipeline started lanes=8 mode=\"a b\"\n"),
            "{line}"
        );
    }

    #[test]
    fn no_value_forges_a_line_or_shows_a_password() {
        for json in [false, true] {
            let line = logged(json, || {
                tracing::warn!(uri = "mongodb://u:s3cret@h/\" x", "bad\n[2026] [ERROR] {}", "mongodb://a:s3cret@h");
            });
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(!line.contains("s3cret"), "{line}");
        }
    }

    #[test]
    fn a_json_line_parses() {
        let line = logged(true, || tracing::info!(tps = 12_u64, "x"));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["level"].as_str(), value["tps"].as_u64()), (Some("INFO"), Some(12)));
    }
}
