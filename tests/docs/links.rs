//! Links between pages, to files, and to headings.

use std::{collections::BTreeSet, path::Path};

use crate::pages::{names, read, repository};

fn outside_of_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    })
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = outside_of_blocks(text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// The targets of a page's links and pictures.
fn targets(text: &str) -> Vec<String> {
    let prose = outside_of_blocks(text).collect::<Vec<_>>().join("\n");
    let links = prose.split("](").skip(1).map(|rest| rest.split(')').next());
    let pictures = prose.split("<img src=\"").skip(1).map(|rest| rest.split('"').next());
    links.chain(pictures).map(|target| target.unwrap().to_owned()).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let pages = names();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in &pages {
        for target in targets(&read(page)) {
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = Path::new(page).parent().unwrap();
            let file = match path {
                "" => page.clone(),
                path => folder.join(path).to_str().unwrap().replace("docs/../", ""),
            };
            let is_there = repository().join(&file).exists();
            let has_anchor = || !pages.contains(&file) || anchors(&read(&file)).contains(anchor);
            if !is_there || !(anchor.is_empty() || has_anchor()) {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} links were found");
}

#[test]
fn the_index_lists_every_page() {
    let index = targets(&read("docs/README.md"));
    for page in names() {
        let name = page.strip_prefix("docs/").unwrap_or_default();
        let is_listed = index.iter().any(|target| target == name);
        assert!(is_listed || ["", "README.md"].contains(&name), "docs/README.md lacks {name}");
    }
}

#[test]
fn the_readme_is_short_and_shows_one_picture() {
    let text = read("README.md");
    let lines = text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines; its details belong into docs/");
    let pictures = text.matches("![").count() + text.matches("<img ").count();
    assert_eq!(pictures, 1, "README.md shows one picture");
}
