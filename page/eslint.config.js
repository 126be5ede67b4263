// What eslint looks for in the page's source: its own recommended rules and Svelte's.
import js from "@eslint/js";
import svelte from "eslint-plugin-svelte";
import globals from "globals";

export default [
  js.configs.recommended,
  ...svelte.configs.recommended,
  {
    languageOptions: { globals: globals.browser },
    rules: {
      "no-unused-vars": ["error", { varsIgnorePattern: "^_", argsIgnorePattern: "^_" }],
      "svelte/no-useless-mustaches": "off", // {" "} is how a blank at a line's end is kept
    },
  },
  { files: ["test/**", "*.config.js"], languageOptions: { globals: globals.node } },
];
