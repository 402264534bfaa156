//! The Link header of a join (RFC 8288, section 3), as it is or in the body, and the older form of the body: one URL.

use super::excerpt;

/// The longest list of links.
pub const MAX_LINKS_BYTES: usize = 16 * 1024;

/// Links that don't say how a participant can be reached: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLinks {
    /// The text is no list of links.
    #[error("links {text:?}: {what} (RFC 8288: <http://cart/compensate>; rel=\"compensate\", <http://cart/complete>; rel=\"complete\")")]
    Malformed {
        /// Its beginning.
        text: String,
        /// What is wrong.
        what: &'static str,
    },
    /// It is too long.
    #[error("links of {0} bytes: at most {MAX_LINKS_BYTES}")]
    TooLong(usize),
    /// Neither compensate nor after: it could not be told of anything.
    #[error("links without rel=compensate and without rel=after: a join needs one of them")]
    NothingToCall,
    /// The same relation twice, to two places.
    #[error("two links of rel={0:?}")]
    Twice(&'static str),
}

/// How a participant can be called, as it said itself: URLs that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawLinks {
    /// `PUT` when the LRA is cancelled.
    pub compensate: Option<String>,
    /// `PUT` when it is closed.
    pub complete: Option<String>,
    /// `GET` where a compensate or complete has taken its time.
    pub status: Option<String>,
    /// `DELETE` when the participant may forget.
    pub forget: Option<String>,
    /// `PUT` by the client when the participant leaves; nothing that is called from here.
    pub leave: Option<String>,
    /// `PUT` when the LRA has ended.
    pub after: Option<String>,
}

impl RawLinks {
    /// Those that are called from here.
    pub fn called(&self) -> impl Iterator<Item = &String> {
        [&self.compensate, &self.complete, &self.status, &self.forget, &self.after].into_iter().flatten()
    }
}

/// Reads the links of a join: those of the `Link` header (several lines are one list, RFC 9110, section 5.3), else those of the body.
///
/// A body that is no list of links is the URL of a participant whose compensate, complete and status lie below it (Narayana's older form).
///
/// # Errors
/// See [`InvalidLinks`].
pub fn links_of_join(header: Option<&str>, body: &str) -> Result<RawLinks, InvalidLinks> {
    let header = header.map(str::trim).filter(|header| !header.is_empty());
    let text = header.unwrap_or(body.trim());
    if text.len() > MAX_LINKS_BYTES {
        return Err(InvalidLinks::TooLong(text.len()));
    }
    let links = if header.is_none() && !text.starts_with('<') && !text.is_empty() { below(text) } else { parse(text)? };
    if links.compensate.is_none() && links.after.is_none() {
        return Err(InvalidLinks::NothingToCall);
    }
    Ok(links)
}

fn below(url: &str) -> RawLinks {
    let base = url.trim_end_matches('/');
    let at = |what: &str| Some(format!("{base}/{what}"));
    RawLinks { compensate: at("compensate"), complete: at("complete"), status: at("status"), ..RawLinks::default() }
}

/// Reads a list of links; relations that nobody here knows are passed over (RFC 8288, section 3.3).
///
/// # Errors
/// When it is no such list, or names one relation twice.
fn parse(text: &str) -> Result<RawLinks, InvalidLinks> {
    let mut links = RawLinks::default();
    let mut reader = Reader { rest: text, text };
    loop {
        reader.skip(|c| c == ',' || c.is_ascii_whitespace());
        if reader.rest.is_empty() {
            return Ok(links);
        }
        let (target, rel) = reader.link()?;
        for rel in rel.split_ascii_whitespace() {
            links.set(&rel.to_ascii_lowercase(), &target)?;
        }
        reader.skip(|c| c.is_ascii_whitespace());
        if !reader.rest.is_empty() && !reader.rest.starts_with(',') {
            return reader.malformed("there is no ',' between two links");
        }
    }
}

impl RawLinks {
    fn set(&mut self, rel: &str, target: &str) -> Result<(), InvalidLinks> {
        let mut set = |place: fn(&mut Self) -> &mut Option<String>, name, url: String| match place(self) {
            Some(before) if *before != url => Err(InvalidLinks::Twice(name)),
            place => {
                *place = Some(url);
                Ok(())
            }
        };
        match rel {
            "compensate" => set(|l| &mut l.compensate, "compensate", target.to_owned()),
            "complete" => set(|l| &mut l.complete, "complete", target.to_owned()),
            "status" => set(|l| &mut l.status, "status", target.to_owned()),
            "forget" => set(|l| &mut l.forget, "forget", target.to_owned()),
            "leave" => set(|l| &mut l.leave, "leave", target.to_owned()),
            "after" => set(|l| &mut l.after, "after", target.to_owned()),
            // Narayana's short form: all of them at one URL.
            "participant" => {
                let base = target.trim_end_matches('/');
                set(|l| &mut l.compensate, "compensate", format!("{base}/compensate"))?;
                set(|l| &mut l.complete, "complete", format!("{base}/complete"))?;
                set(|l| &mut l.status, "status", base.to_owned())?;
                set(|l| &mut l.forget, "forget", base.to_owned())
            }
            _ => Ok(()),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn malformed<T>(&self, what: &'static str) -> Result<T, InvalidLinks> {
        Err(InvalidLinks::Malformed { text: excerpt(self.text), what })
    }

    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(what);
    }

    fn takes(&mut self, c: char) -> bool {
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Takes what lies before the first character for which `ends` holds.
    fn until(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let at = self.rest.find(ends).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(at);
        self.rest = rest;
        taken
    }

    /// `<target>` with its parameters; the first `rel` counts (RFC 8288, section 3.3).
    fn link(&mut self) -> Result<(String, String), InvalidLinks> {
        if !self.takes('<') {
            return self.malformed("a link begins with '<'");
        }
        let target = self.until(|c| c == '>').trim().to_owned();
        if !self.takes('>') {
            return self.malformed("there is no '>' after the target of a link");
        }
        if target.is_empty() {
            return self.malformed("a link has no target");
        }
        let mut rel = None;
        loop {
            self.skip(|c| c.is_ascii_whitespace());
            if !self.takes(';') {
                break;
            }
            self.skip(|c| c.is_ascii_whitespace());
            let name = self.until(|c| matches!(c, '=' | ';' | ',') || c.is_ascii_whitespace());
            self.skip(|c| c.is_ascii_whitespace());
            let value = if self.takes('=') { self.value()? } else { String::new() };
            if name.eq_ignore_ascii_case("rel") && rel.is_none() {
                rel = Some(value);
            }
        }
        match rel {
            Some(rel) => Ok((target, rel)),
            None => self.malformed("a link has no rel"),
        }
    }

    /// A token or a quoted string (RFC 9110, section 5.6.4).
    fn value(&mut self) -> Result<String, InvalidLinks> {
        self.skip(|c| c.is_ascii_whitespace());
        if !self.takes('"') {
            return Ok(self.until(|c| matches!(c, ';' | ',') || c.is_ascii_whitespace()).to_owned());
        }
        let mut value = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    self.rest = chars.as_str();
                    return Ok(value);
                }
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        self.malformed("a quoted parameter has no end")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some(url: &str) -> Option<String> {
        Some(url.to_owned())
    }

    #[test]
    fn as_narayana_writes_them() {
        let header = "<http://cart/compensate>; rel=\"compensate\"; title=\"compensate URI\"; type=\"text/plain\",<http://cart/complete?a=1,2;3>; rel=\"complete\"; title=\"complete URI\"; \
                      type=\"text/plain\",<http://cart/after>; rel=\"after\"";
        let links = links_of_join(Some(header), "http://ignored").unwrap();
        assert_eq!(
            links,
            RawLinks {
                compensate: some("http://cart/compensate"),
                complete: some("http://cart/complete?a=1,2;3"),
                after: some("http://cart/after"),
                ..RawLinks::default()
            }
        );
    }

    #[test]
    fn quoted_parameters_may_hold_anything_and_white_space_is_free() {
        let text = " <http://a/x> ; title=\"a, <b>; rel=after \\\" c\" ;\trel = compensate ; rel=after , , <http://a/s>;REL=\"status Forget\"; flag ,";
        let links = links_of_join(Some(text), "").unwrap();
        assert_eq!(links, RawLinks { compensate: some("http://a/x"), status: some("http://a/s"), forget: some("http://a/s"), ..RawLinks::default() });
    }

    #[test]
    fn one_target_with_all_and_the_older_bodies() {
        let links = links_of_join(None, "<http://a/p/>; rel=participant").unwrap();
        assert_eq!((links.compensate, links.status, links.forget), (some("http://a/p/compensate"), some("http://a/p"), some("http://a/p")));
        let links = links_of_join(Some("  "), " http://a/p/ \n").unwrap();
        assert_eq!((links.compensate, links.complete, links.status), (some("http://a/p/compensate"), some("http://a/p/complete"), some("http://a/p/status")));
        assert_eq!((links.forget, links.after), (None, None));
    }

    #[test]
    fn relations_that_nobody_knows_are_passed_over_and_the_same_link_twice_is_one() {
        let links = links_of_join(Some("<http://a/x>; rel=next, <http://a/c>; rel=compensate, <http://a/c>; rel=compensate"), "").unwrap();
        assert_eq!(links, RawLinks { compensate: some("http://a/c"), ..RawLinks::default() });
    }

    #[test]
    fn what_is_no_list_is_refused_and_says_why() {
        for (bad, why) in [
            ("http://a/c; rel=compensate", "begins with '<'"),
            ("<http://a/c; rel=compensate", "no '>'"),
            ("<>; rel=compensate", "no target"),
            ("<http://a/c>", "no rel"),
            ("<http://a/c>; title=rel", "no rel"),
            ("<http://a/c>; rel=\"compensate", "no end"),
            ("<http://a/c>; rel=compensate <http://a/d>; rel=after", "no ','"),
            ("<http://a/c>; rel=complete, <http://a/s>; rel=status", "rel=compensate"),
            ("<http://a/c>; rel=compensate, <http://b/c>; rel=compensate", "two links"),
            (&"<".repeat(MAX_LINKS_BYTES + 1), "at most"),
        ] {
            let error = links_of_join(Some(bad), "").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(links_of_join(None, ""), Err(InvalidLinks::NothingToCall));
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "[<>;,=\"\\\\ a-z:/ä]{0,80}", body in "\\PC{0,40}") {
            let _ = links_of_join(Some(&header), &body);
            let _ = links_of_join(None, &body);
        }

        #[test]
        fn what_is_quoted_comes_back(title in "\\PC{0,30}", path in "[a-z0-9/?&=,;]{1,20}") {
            let quoted = title.replace('\\', "\\\\").replace('"', "\\\"");
            let links = links_of_join(Some(&format!("<http://a/{path}>; title=\"{quoted}\"; rel=\"compensate\", <http://a/after>; rel=after")), "").unwrap();
            prop_assert_eq!(links.compensate, Some(format!("http://a/{path}")));
            prop_assert_eq!(links.after, some("http://a/after"));
        }
    }
}
