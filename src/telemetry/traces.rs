//! W3C trace context: the trace of a request, propagated to everything the request causes.

use std::{fmt, future::Future, str::FromStr};

use tracing::Span;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// The place of this program in a trace, as `traceparent` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) flags: u8,
}

impl TraceContext {
    /// A span of our own in the trace that `traceparent` names, or in a new one if it names none.
    #[must_use]
    pub fn continued(traceparent: Option<&str>) -> Self {
        let span = rand::random::<u64>().max(1);
        let given = traceparent.and_then(|text| text.parse::<Self>().ok());
        match given {
            Some(given) => Self { span, ..given },
            None => Self { trace: rand::random::<u128>().max(1), span, flags: 0 },
        }
    }

    /// The place of a request with this `span` in the trace that `traceparent` names, or in a new
    /// one. Exported traces call it by its method and route.
    #[must_use]
    #[cfg_attr(not(feature = "otel"), expect(unused_variables, reason = "nothing is exported"))]
    pub fn of_request(span: &Span, method: &str, route: &str, traceparent: Option<&str>) -> Self {
        #[cfg(feature = "otel")]
        {
            let parent = traceparent.and_then(|text| text.parse().ok());
            let exported = super::otlp::begin_request(span, method, route, parent);
            if let Some(exported) = exported {
                return exported;
            }
        }
        Self::continued(traceparent)
    }

    /// The trace context of the request that the current task serves.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| *current).ok()
    }

    /// Runs `future` within this trace context. Tasks that the future spawns are outside it.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The id of the trace, in hexadecimal.
    #[must_use]
    pub fn trace_id(self) -> impl fmt::Display {
        TraceId(self.trace)
    }
}

/// In the form of `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Records the answer in the exported span of a request.
#[cfg_attr(not(feature = "otel"), expect(unused_variables, reason = "nothing is exported"))]
pub fn answered(span: &Span, status: u16) {
    #[cfg(feature = "otel")]
    super::otlp::end_request(span, status);
}

struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a `traceparent`.
#[derive(Debug)]
pub struct NoTraceparent;

impl FromStr for TraceContext {
    type Err = NoTraceparent;

    fn from_str(text: &str) -> Result<Self, NoTraceparent> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let lower = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            lower.then(|| u128::from_str_radix(part, 16).ok())?
        };
        let version = hex(2).filter(|version| *version != 0xff).ok_or(NoTraceparent)?;
        let trace = hex(32).filter(|trace| *trace != 0).ok_or(NoTraceparent)?;
        let span = hex(16).filter(|span| *span != 0).ok_or(NoTraceparent)?;
        let flags = hex(2).ok_or(NoTraceparent)?;
        // Later versions may append parts; version 0 has four.
        if version == 0 && parts.next().is_some() {
            return Err(NoTraceparent);
        }
        let span = u64::try_from(span).map_err(|_| NoTraceparent)?;
        // Of the flags, only "sampled" is defined.
        Ok(Self { trace, span, flags: u8::from(flags & 1 == 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_given_trace_is_continued_with_a_span_of_our_own() {
        let ours = TraceContext::continued(Some(GIVEN));
        assert_eq!(ours.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let text = ours.to_string();
        assert!(text.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && text.ends_with("-01"));
        assert!(!text.contains("00f067aa0ba902b7"));
        assert_eq!(text.parse::<TraceContext>().unwrap(), ours);
    }

    #[test]
    fn what_is_no_traceparent_begins_a_new_trace() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
            let new = TraceContext::continued(Some(wrong));
            assert!(new.to_string().parse::<TraceContext>().is_ok());
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        assert!(later.parse::<TraceContext>().is_ok(), "later versions may append");
    }
}
