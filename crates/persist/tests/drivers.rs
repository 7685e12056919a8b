//! Every driver does the same.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::driver::{
    Choice, DriverError, Feature, Features, FsDriver, MemDriver, Memory, PersistDriver, Registry,
    Rootless, UserPlace,
};
use coracle_persist::root::Root;
use std::path::Path;
use tempfile::TempDir;

mod fs {
    use super::*;

    struct Place(TempDir);

    impl Place {
        fn driver(&self) -> Box<dyn PersistDriver> {
            Box::new(FsDriver::new(Root::at(self.0.path().join("deep/root"))))
        }
    }

    crate::conformance!(Place(tempfile::tempdir().unwrap()));
}

mod rootlessfs {
    use super::*;

    struct Place(TempDir);

    impl Place {
        fn driver(&self) -> Box<dyn PersistDriver> {
            let choice = Choice {
                user: UserPlace::Runtime(Some(self.0.path().to_owned())),
                rootless: Rootless::claimed(1000, false),
                ..Choice::kata()
            };
            let driver = Registry::new(choice).driver().unwrap();
            assert!(driver.run_storage_path().starts_with(self.0.path().join("run/vc")));
            driver
        }
    }

    crate::conformance!(Place(tempfile::tempdir().unwrap()));
}

mod mem {
    use super::*;

    struct Place(Memory);

    impl Place {
        fn driver(&self) -> Box<dyn PersistDriver> {
            Box::new(MemDriver::new(self.0.clone()))
        }
    }

    crate::conformance!(Place(Memory::default()));
}

fn choice() -> Choice {
    Choice { root: Root::at("/r"), rootless: Rootless::claimed(0, false), ..Choice::kata() }
}

#[test]
fn the_driver_that_is_meant_depends_on_who_asks() {
    let name = |choice: Choice| Registry::new(choice).driver().unwrap().name();
    assert_eq!(name(choice()), "fs");
    assert_eq!(name(Choice { rootless: Rootless::claimed(0, true), ..choice() }), "rootlessfs");
    assert_eq!(name(Choice { rootless: Rootless::claimed(7, false), ..choice() }), "rootlessfs");
    let mock = Some(Memory::default());
    assert_eq!(name(Choice { mock, rootless: Rootless::claimed(7, false), ..choice() }), "mem");
    let fs = Registry::new(choice()).driver_by_name("fs").unwrap();
    assert_eq!(fs.run_storage_path(), Path::new("/r/sbs"));
    assert_eq!(fs.run_vm_storage_path(), Path::new("/r/vm"));
    assert_eq!(Registry::new(Choice::coracle()).driver_by_name("mem").unwrap().name(), "mem");
}

#[test]
fn an_unknown_driver_is_named_beside_those_there_are() {
    let error = Registry::new(choice()).driver_by_name("leveldb").err().unwrap();
    assert_eq!(error.to_string(), "there is no driver \"leveldb\"; there are fs, rootlessfs, mem");
    assert_eq!(error.code(), "E-STATE-DRIVER");
}

#[test]
fn features_out_of_order_leave_no_driver() {
    let mut features = Features::standard().unwrap();
    let twice = Feature {
        name: "newstore".to_owned(),
        description: "again".to_owned(),
        release: "3.0".to_owned(),
    };
    let bad = features.register(twice).map(|()| features);
    let error = Registry::new(Choice { features: bad, ..choice() }).driver().err().unwrap();
    assert!(matches!(error, DriverError::Features(_)));
}

#[test]
fn a_driver_of_another_crate_can_be_registered() {
    let mut registry = Registry::new(choice());
    registry.register("other", |_| Ok(Box::new(MemDriver::new(Memory::default()))));
    assert_eq!(registry.driver_by_name("other").unwrap().name(), "mem");
}
