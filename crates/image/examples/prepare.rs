//! Makes the image of a source and says how long it took: `prepare STORE SOURCE [NAME]`.

use std::time::Instant;

use coracle_image::{Phase, Progress, Source, Store};

struct Talk {
    start: Instant,
}

impl Progress for Talk {
    fn begin(&mut self, phase: Phase, total: Option<u64>) {
        eprintln!("{:>8.1} ms  {phase:?} {total:?}", self.start.elapsed().as_secs_f64() * 1e3);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(store), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: prepare STORE SOURCE [NAME]".into());
    };
    let mut talk = Talk { start: Instant::now() };
    let mut source = Source::detect(path.as_ref())?;
    if let Some(name) = arguments.next() {
        source = source.with_reference(name.to_string_lossy());
    }
    let image = Store::open(store)?.prepare(&source, &mut talk).inspect_err(|error| {
        eprintln!("{}: {}", error.code(), error.help());
    })?;
    let took = talk.start.elapsed().as_secs_f64() * 1e3;
    eprintln!("{took:>8.1} ms  {:?}, cached: {}", source.kind(), image.cached);
    println!("{}", image.path.display());
    Ok(())
}
