// Builds the page into the Python package.  Every name is relative, and nothing is fetched from elsewhere.
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: {
    outDir: "../src/unspool/page/static",
    emptyOutDir: true,
    modulePreload: { polyfill: false }, // it would be an inline script
    assetsInlineLimit: 0,
    target: "es2022",
  },
  server: { proxy: { "/api": process.env.UNSPOOL_SEE ?? "http://127.0.0.1:8420" } },
});
