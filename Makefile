# The targets are thin: what they do is in scripts/.
.PHONY: help setup build run demo-survive test lint bench
.DEFAULT_GOAL := help

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Install packages, fetch a kernel, build agent, command and guest files
	@scripts/setup

build: ## Build the command into target/release
	@cargo build --release -p coracle

run: setup ## Set up, boot a VM and run a command in a container in it
	@scripts/run

demo-survive: setup ## Kill and replace the runtime of a container that counts, and check that it goes on
	@scripts/demo-survive

test: setup ## Set up and run all tests
	@scripts/test

lint: ## Check formatting and run clippy on everything
	@scripts/lint

bench: setup ## Measure speed and memory against a bare VM
	@scripts/bench
